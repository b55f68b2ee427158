"""The command line as people meet it: real argv in, message and exit code out."""

import dataclasses
import errno
import os
import pathlib
import subprocess
import sys

import pytest

from moejax import flags
from moejax.errors import UsageError
from tests import door
from tests.own_words import own_words

ROOT = pathlib.Path(__file__).resolve().parent.parent
SELECTOR = "--config.model.groups[0].blocks[0].ffn.selector"


def start(*argv, cwd=ROOT):
    """Run the door in a process of its own."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "door.py"), *map(str, argv)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120)


BAD = [
    (["--config.train.stepz=5"], ["config.train.stepz does not exist; did you mean steps?"]),
    (["--config.steps=5"], ["did you mean config.train.steps?"]),
    (["--config.train.steps=many"], ["config.train.steps='many' is not a whole number"]),
    (["--config.train.steps=0"], ["train.steps=0 must be at least 1"]),
    (["--config.train.accumulate=3"], ["train.batch_rows=8", "train.accumulate=3"]),
    (["--config.model.dtype=int8"], ["model.dtype='int8'", "bfloat16"]),
    (["--config.model.remat=some"], ["model.remat='some'", "full"]),
    (["--config.model.vocab=1"], ["model.vocab=1"]),
    (["--config.train.optim.learning_rate=-1"], ["learning_rate=-1.0 must be positive"]),
    (["--config.train.optim.schedule=step"], ["schedule='step'", "cosine"]),
    (["--config.train.checkpoint.keep_last=0"], ["keep_last=0 must be at least 1"]),
    (["--config.mesh.data=-1", "--config.mesh.expert=-1"], ["-1 on data and expert", "at most one"]),
    (["--config.data.held_out=1"], ["held_out=1.0 must lie between 0 and 1"]),
    ([f"{SELECTOR}.k=9"], ["k=9", "num_experts=8", "choose"]),
    ([f"{SELECTOR}=TopP"], ["this is a TopK, not a plain value"]),
    (["--config.model.groups[1].repeat=2"], ["config.model.groups has 1 entries"]),
    (["--config.train=5"], ["this is a TrainConfig"]),
    (["--config=configs/base.py:mixtral"], ["has no recipe 'mixtral'", "tiny"]),
    (["--config.train.steps"], ["--config.train.steps needs a value"]),
    (["--config=configs/tinny.py"], ["configs/tinny.py does not exist; did you mean configs/tiny.py?"]),
    (["--config=nowhere/config.json"], ["cannot be read"]),
    (["--workdri=x"], ["unknown flag --workdri; did you mean --workdir?"]),
    (["--cofig.train.steps=5"], ["did you mean --config.train.steps?"]),
    (["--train.steps=5"], ["did you mean --config.train.steps?"]),
    (["--retries=-1"], ["--retries=-1"]),
    (["runs/tiny"], ["unexpected argument 'runs/tiny'"]),
]


@pytest.mark.parametrize("argv, message", BAD, ids=lambda value: value[0])
def test_bad_combinations_are_usage_errors(argv, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert flags.main(door.PROGRAM, argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert err.startswith("error: ")
    for part in message:
        assert part in err


@pytest.mark.parametrize("argv", [BAD[0][0], BAD[-5][0], ["--config.train.accumulate=3"]])
def test_a_process_that_was_called_wrongly_exits_with_2(argv):
    ended = start(*argv)
    assert (ended.returncode, ended.stdout) == (2, "")
    told = own_words(ended.stderr)
    assert told.startswith("error: ") and "Traceback" not in told


def test_overrides_reach_the_config_in_either_form():
    ended = start("--config.train.steps=500", "--config.mesh.expert", "4", "--config.mesh.data", "-1")
    assert ended.returncode == 0
    values = {line.split()[0]: line.split()[1:] for line in ended.stdout.splitlines()}
    assert values["train.steps"] == ["500", "command", "line"]
    assert values["mesh.expert"] == ["4", "command", "line"]
    assert values["mesh.data"] == ["-1", "command", "line"]
    assert values["model.vocab"] == ["272", "configs/tiny.py"]
    assert values["mesh.tensor"] == ["1", "default"]


def test_a_saved_config_replays_to_the_same_run(tmp_path):
    first = start("--dry_run", "--config.train.steps=7", "--config.data.source=a,b")
    (tmp_path / "config.json").write_text(first.stdout)
    second = start("--dry_run", f"--config={tmp_path / 'config.json'}")
    assert (second.returncode, second.stdout) == (0, first.stdout)


def test_recipes_are_found_from_any_directory(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import dataclasses\nfrom configs import base\n"
        "def wide():\n    return dataclasses.replace(base.tiny(), name='wide')\n"
    )
    assert start("--config=configs/tiny.py", cwd=tmp_path).returncode == 0
    ended = start("--config=mine.py:wide", cwd=tmp_path)
    assert ended.returncode == 0 and ended.stdout.split()[:3] == ["name", "wide", "mine.py:wide"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("def config(:", "failed: SyntaxError"),
        ("import nowhere_at_all", "failed: ModuleNotFoundError"),
        ("def config():\n    return 1 / 0", "bad.py:config failed: ZeroDivisionError"),
        ("def config():\n    return {}", "gives a dict; expected a moejax.config.Run"),
        ("def conifg():\n    return {}", "has no recipe 'config'; did you mean conifg?"),
    ],
)
def test_broken_recipes(text, message, tmp_path, capsys):
    (tmp_path / "bad.py").write_text(text)
    assert flags.main(door.PROGRAM, [f"--config={tmp_path / 'bad.py'}"]) == 2
    assert message in capsys.readouterr().err


def test_user_errors_are_one_message_and_debug_adds_the_trace(capsys):
    assert flags.main(door.PROGRAM, ["--fail=retry"]) == 75
    assert capsys.readouterr().err == "error: as told\n"
    assert flags.main(door.PROGRAM, ["--fail=retry", "--debug"]) == 75
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_exits_with_70_and_leaves_its_trace(tmp_path, capsys):
    assert flags.main(door.PROGRAM, ["--fail=bug", f"--workdir={tmp_path}"]) == 70
    err = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: as told" in err and "Traceback" not in err
    assert str(tmp_path / "crash.txt") in err
    assert "ZeroDivisionError: as told" in (tmp_path / "crash.txt").read_text()
    assert flags.main(door.PROGRAM, ["--fail=bug", f"--workdir={tmp_path / 'none'}"]) == 70
    assert not (tmp_path / "none").exists()


def test_a_bug_on_a_bad_disk_is_still_told(tmp_path, capsys):
    (tmp_path / "crash.txt").mkdir()
    assert flags.main(door.PROGRAM, ["--fail=bug", f"--workdir={tmp_path}"]) == 70
    err = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: as told" in err and "crash.txt" not in err


@pytest.mark.parametrize(
    "code, status",
    [(errno.ENOSPC, 74), (errno.EDQUOT, 74), (errno.EIO, 74), (errno.EROFS, 74), (errno.ENOENT, 70)],
)
def test_the_disks_fault_is_no_bug(code, status, capsys):
    def run(call):
        raise OSError(code, os.strerror(code), "report.html")

    program = dataclasses.replace(door.PROGRAM, run=run)
    assert flags.main(program, []) == status
    err = capsys.readouterr().err
    assert "report.html" in err and os.strerror(code) in err
    assert ("internal error" in err) == (status == 70)


def test_interrupt(capsys):
    assert flags.main(door.PROGRAM, ["--fail=interrupt"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, str(ROOT / "tests" / "door.py"), "--help"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert own_words(process.stderr.read()) == ""
    assert process.returncode == 141


def test_help_names_every_flag_with_its_default(capsys):
    assert flags.main(door.PROGRAM, ["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("A door.")
    for part in ("--config=TEXT", "(default configs/tiny.py)", "--retries=N", "(default 3)", "--debug"):
        assert part in out
    assert "--config.PATH=VALUE" in out


def test_flags_from_a_file(tmp_path):
    (tmp_path / "flags.txt").write_text("--config.train.steps=9\n--retries=5\n")
    call = flags.parse(door.PROGRAM, [f"--flagfile={tmp_path / 'flags.txt'}", "--config.mesh.data=2"])
    assert call.overrides == {"train.steps": "9", "mesh.data": "2"}
    assert call.flags.retries == 5


def test_split_overrides():
    argv = ["--config=x.py", "--config.a.b=1=2", "--config.a.b", "3", "-config.c=", "--debug"]
    assert flags.split_overrides(argv) == (["--config=x.py", "--debug"], {"a.b": "3", "c": ""})
    with pytest.raises(UsageError, match=r"--config\.a needs a value"):
        flags.split_overrides(["--config.a", "--debug"])


@pytest.mark.parametrize(
    "environ, threads",
    [
        ({"XLA_FLAGS": "--a --xla_force_host_platform_device_count=64 --b"}, "128"),
        ({"JAX_NUM_CPU_DEVICES": "64"}, "128"),
        ({"JAX_NUM_CPU_DEVICES": "64", "NPROC": "3"}, "3"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, None),
        ({}, None),
    ],
)
def test_virtual_devices_get_threads(environ, threads):
    flags.feed_virtual_devices(environ)
    assert environ.get("NPROC") == threads


def test_a_wrong_flag_is_answered_without_jax():
    code = "import sys; from tests import door; from moejax import flags; "
    code += "status = flags.main(door.PROGRAM, ['--nope']); sys.exit(10 * status + ('jax' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 20
