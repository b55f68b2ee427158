"""serve.py from the outside: flags, files, pipes, exit codes."""

import dataclasses
import io
import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

import moejax
from moejax.flags import main
from moejax.serving.door import PROGRAM
from moejax.serving.generate import generate
from tests.own_words import own_words

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def saved(model, tmp_path_factory):
    """The model's directory."""
    path = tmp_path_factory.mktemp("serving") / "model"
    moejax.save(model, path)
    return path


@pytest.fixture(autouse=True)
def no_compilation_cache_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))


def serve(saved, *flags):
    return main(PROGRAM, [f"--model={saved}", "--max_tokens=15", *flags])


def piped(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_file_of_requests(saved, model, tmp_path, capsys):
    requests = tmp_path / "prompts.jsonl"
    lines = [
        {"id": "a", "prompt": "def f(x):"},
        {"prompt": ""},
        {"id": 9, "prompt": "a", "temperature": 1, "seed": 4},
    ]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "out.jsonl"
    assert serve(saved, f"--input={requests}", f"--output={output}", "--batch_rows=4") == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    one, two = generate(
        model, ["def f(x):", "a"], max_tokens=15, temperature=[0.0, 1.0], seed=[0, 4], batch_rows=4
    )
    assert [row["id"] for row in rows] == ["a", 2, 9]
    assert [rows[0]["text"], rows[2]["text"]] == [one.text, two.text]
    assert rows[1]["error"]["message"] == f"{requests}:2: the prompt is empty; give at least one character"
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl"]
    captured = capsys.readouterr()
    assert captured.out == ""
    done, first, per_token = captured.err.splitlines()[-3:]
    assert done.startswith("done: requests=3 errors=1 prompt_tokens=12 tokens=30 ")
    assert first.startswith("ttft_p50=") and per_token.startswith("tpot_p50=")
    assert serve(saved, f"--input={requests}", "--strict", "--batch_rows=4") == 65
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_answers_keep_their_order_over_many_windows(saved, monkeypatch, capsys):
    monkeypatch.setattr("moejax.serving.answering.WINDOW", 4)
    count = 11
    piped(monkeypatch, b"".join(b"%s\n" % (b"x" * (1 + 7 * i % 9)) for i in range(count)))
    assert serve(saved, "--input=-", "--batch_rows=4") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in rows] == list(range(1, count + 1))
    assert [row["prompt_tokens"] for row in rows] == [2 + 7 * i % 9 for i in range(count)]


def test_a_scheduler_changes_no_byte(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    requests = tmp_path / "in.jsonl"
    prompts = [{"prompt": "x" * (1 + 5 * i % 17), "temperature": i % 2, "seed": i} for i in range(12)]
    requests.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    answers = set()
    for name in ("chunked", "layered", "shared_prefix"):
        output, summary = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.json"
        flags = (f"--scheduler={name}", f"--output={output}", f"--summary={summary}", "--batch_rows=4")
        assert serve(saved, f"--input={requests}", *flags) == 0
        answers.add(output.read_bytes())
        found = json.loads(summary.read_text())
        assert found["steps"] >= 15 and found["experts_per_step"] > 1
    assert len(answers) == 1


def test_a_prompt_is_answered_as_text(saved, model, monkeypatch, capsys):
    text = generate(model, ["a"], max_tokens=15, batch_rows=1)[0].text
    assert serve(saved, "--prompt=a") == 0
    assert capsys.readouterr().out == text + "\n"
    piped(monkeypatch, b"a\n")
    assert serve(saved, "--prompt=-") == 0
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt=a", "--model="], "--model is missing"),
        (["--prompt=a", "--model=nowhere", "--offline"], "there is no directory 'nowhere'"),
        (["--prompt=a", "--model=./nowhere.gguf"], "there is no file or directory './nowhere.gguf'"),
        (["--prompt=a", "--dtype=bfloat16"], "is computed in the dtype of its config.json"),
        (["--prompt=a", "--model=."], "has no config.json"),
        (["--prompt=a", "--input=b"], "give either --prompt"),
        (["--prompt="], "the prompt is empty"),
        (["--prompt=a", "--temperature=3"], "temperature=3.0 must be from 0 to 2"),
        (["--prompt=a", "--max_tokens=0"], "max_tokens=0 must be at least 1"),
        (["--prompt=a", "--max_token=3"], "did you mean --max_tokens?"),
        (["--prompt=a", "--output=no/where"], "there is no directory 'no'"),
        (["--prompt=a", "--output=."], "--output=. is a directory"),
        (["--input=nowhere.jsonl"], "--input=nowhere.jsonl cannot be read: No such file"),
        (["--prompt=a", "--batch_rows=0"], "batch_rows"),
        (["--prompt=a", "--trace=no/where"], "--trace=no/where: there is no directory 'no'"),
        (["--prompt=a", "--trace=."], "--trace=. is a directory"),
        (["--prompt=a", "--summary=."], "--summary=. is a directory"),
        (["--prompt=a", "--stop="], "has an empty text"),
        (["--prompt=a", "--logprobs=21"], "logprobs=21 must be from 0 to 20"),
        (["--prompt=a", "--resume", "--output=out"], "--resume goes on with a file of requests"),
        (["--input=a", "--resume"], "--resume goes on with a file; give --output=FILE"),
        (["--input=-", "--resume", "--output=out"], "which standard input has no more"),
    ],
)
def test_what_cannot_work_is_refused(saved, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert main(PROGRAM, [f"--model={saved}", *flags]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_routing_of_what_was_read_and_written(saved, monkeypatch, tmp_path, capsys):
    piped(monkeypatch, b"abc\nx\n")
    path = tmp_path / "served.npz"
    assert serve(saved, "--input=-", "--batch_rows=2", "--max_tokens=3", f"--trace={path}") == 0
    trace = moejax.RoutingTrace.load(path)
    done = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    written = [min(row["completion_tokens"], 2) for row in done]  # the last passes no router
    assert [own.stop - own.start for own in trace.texts()] == [4 + written[0], 2 + written[1]]
    assert trace.labels == ("prompt", "generated")


def test_no_such_step(saved, capsys):
    assert serve(saved, "--prompt=a", "--step=3") == 66
    assert "no checkpoint of step 3; there are: 0" in capsys.readouterr().err


def test_a_reader_that_goes_away_ends_it_quietly(saved):
    command = [
        sys.executable,
        "serve.py",
        f"--model={saved}",
        "--input=-",
        "--max_tokens=1",
        "--batch_rows=4",
    ]
    data = b"a\n" * 3000
    server = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with server:
        server.stdout.close()
        _, errors = server.communicate(data, timeout=200)
    assert (server.returncode, own_words(errors)) == (0, "")


def test_the_model_is_not_touched(saved):
    names = sorted(str(path.relative_to(saved)) for path in saved.rglob("*"))
    assert not any("lock" in name or "corrupt" in name for name in names)


def test_a_prompt_with_every_setting(saved, model, tmp_path):
    flags = ["--temperature=1", "--top_k=9", "--top_p=0.9", "--min_p=0.01", "--seed=-5", "--logprobs=1"]
    output = tmp_path / "out.json"
    assert serve(saved, "--prompt=a", *flags, "--stop=never", "--stop=nor this", f"--output={output}") == 0
    settings = {"temperature": 1.0, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "seed": -5, "logprobs": 1}
    wanted = generate(model, ["a"], max_tokens=15, batch_rows=1, **settings)[0]
    row = json.loads(output.read_text())
    assert row["text"] == wanted.text
    found = [likely.log_prob for likely in wanted.logprobs]
    assert row["logprobs"]["token_logprobs"] == pytest.approx(found, abs=1e-5)


def test_without_a_prompt_it_shows_what_it_can(saved, capsys):
    assert serve(saved) == 0
    captured = capsys.readouterr()
    assert captured.out.count("> ") >= 3 and "> def fibonacci(n):" in captured.out
    assert "done: requests=3 errors=0 " in captured.err


def test_a_summary(saved, monkeypatch, tmp_path):
    piped(monkeypatch, b"a\nb\n" + b"x" * 99)
    path = tmp_path / "summary.json"
    assert serve(saved, "--input=-", f"--summary={path}") == 0
    found = json.loads(path.read_text())
    assert (found["requests"], found["errors"], found["completion_tokens"]) == (3, 1, 30)
    assert found["time_to_first_token"]["p50"] > 0 < found["time_per_output_token"]["p99"]
    assert "expert_load" not in found


class Stopped(Exception):
    pass


def stopping(monkeypatch, after):
    """Let a job end with an error after so many answers."""
    from moejax.serving.journal import Journal

    add, count = Journal.add, itertools.count(1)

    def add_or_stop(self, *answer):
        add(self, *answer)
        if next(count) == after:
            raise Stopped

    monkeypatch.setattr(Journal, "add", add_or_stop)


def test_a_job_goes_on_where_it_stopped(saved, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "7")
    requests, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"id": i, "prompt": "x" * (1 + 7 * i % 9), "max_tokens": 1 + i % 3} for i in range(20)]
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    flags = (f"--input={requests}", f"--output={output}", "--batch_rows=4")
    assert serve(saved, *flags) == 0
    whole = output.read_bytes()
    output.unlink()
    with monkeypatch.context() as patch:
        stopping(patch, after=9)
        assert serve(saved, *flags) == 70
    part = tmp_path / "out.jsonl.part"
    answered = part.read_bytes()
    assert serve(saved, *flags) == 2
    assert "has 9 answers of a job that was stopped; --resume goes on" in capsys.readouterr().err
    assert serve(saved, *flags, "--resume", "--seed=5") == 65
    assert "settings.seed was 0, is now 5" in capsys.readouterr().err
    requests.write_text(requests.read_text() + "{}\n")
    assert serve(saved, *flags, "--resume") == 65
    assert "input.sha256 was" in capsys.readouterr().err
    requests.write_text(requests.read_text()[:-3])
    assert part.read_bytes() == answered
    assert serve(saved, *flags, "--resume", "--strict") == 65  # the wrong line was answered before
    assert output.read_bytes() == whole
    assert "done: requests=21 errors=1 " in capsys.readouterr().err
    assert serve(saved, *flags, "--resume") == 0
    assert "out.jsonl is whole already" in capsys.readouterr().err
    requests.write_text(requests.read_text() + "{}\n")
    assert serve(saved, *flags, "--resume") == 65
    assert "is whole with 21 answers, but" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out.jsonl"]


def test_another_model_does_not_go_on(saved, model, monkeypatch, tmp_path, capsys):
    path = tmp_path / "model"
    moejax.save(model, path)
    flags = ("--input=in.txt", "--output=out", "--max_tokens=2", "--model=model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("a\nb\nc\n")
    with monkeypatch.context() as patch:
        stopping(patch, after=1)
        assert main(PROGRAM, flags) == 70
    params = jax.tree.map(lambda x: x, model.params)
    params["unembed"] = params["unembed"].at[5, 5].add(1e-6)
    shutil.rmtree(path)
    moejax.save(dataclasses.replace(model, params=params), path)
    assert main(PROGRAM, [*flags, "--resume"]) == 65
    assert "model.crc32 was" in capsys.readouterr().err
