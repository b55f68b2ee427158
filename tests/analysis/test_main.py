"""python -m moejax.analysis from the outside: a run, traces, and what cannot work."""

import dataclasses
import json
import shutil

import pytest

import moejax
from moejax import overrides
from moejax.analysis.__main__ import PROGRAM, with_run
from moejax.config import BlockConfig, Group
from moejax.ffn.dense import Dense
from moejax.flags import main
from moejax.training.loop import train
from tests.analysis.routing import traces
from tests.faults import recipe
from tests.faults.conftest import write_text


def analyse(*argv):
    return main(PROGRAM, with_run([str(arg) for arg in argv]))


def trained(folder, run, **changes):
    write_text(folder / "text.py")
    data = {"data.source": str(folder / "text.py"), "data.cache_dir": str(folder / "cache")}
    settings = {"train.steps": "4", "train.eval_every": "0", "train.eval_rows": "8"} | data | changes
    return train(overrides.resolve(run, "recipe", settings), folder / "run").run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with checkpoints 2 and 4."""
    return trained(tmp_path_factory.mktemp("analysis"), recipe.config(), **{"train.checkpoint.every": "2"})


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_analysed(run_dir, capsys):
    assert analyse(run_dir, "--rows=12") == 0
    assert f"open {run_dir / 'analysis.html'}" in capsys.readouterr().out
    figures = json.loads((run_dir / "analysis.json").read_text())
    assert (figures["name"], figures["step"], len(figures["layers"])) == ("fault", 4, 1)
    assert [other["step"] for other in figures["comparisons"]] == [2]
    assert 0 <= figures["comparisons"][0]["change"][0]["set_change"] <= 1
    assert figures["layers"][0]["scores"]["entropy"] > 0
    text = (run_dir / "analysis.html").read_text()
    assert "identifier" in text and "step 2" in text


def test_given_traces_are_analysed(run_dir, tmp_path, capsys):
    for step in (8, 5):
        dataclasses.replace(traces.random(step), step=step).save(tmp_path / f"{step}.npz")
    out = tmp_path / "page.html"
    assert (
        analyse(run_dir, f"--trace={tmp_path / '8.npz'}", f"--trace={tmp_path / '5.npz'}", f"--out={out}")
        == 0
    )
    figures = json.loads((tmp_path / "page.json").read_text())
    assert (figures["step"], [other["step"] for other in figures["comparisons"]]) == (8, [5])
    assert figures["comparisons"][0]["change"] is None  # another text
    assert out.is_file()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 2, "which run?"),
        (["--rows=3"], 2, "which run?"),
        (["nowhere"], 2, "nowhere is no directory; give the --workdir"),
        (["."], 2, "has no tokenizer.json; give the --workdir of a training run"),
        (["RUN", "--out=no/where.html"], 2, "there is no directory 'no'"),
        (["RUN", "--out=a.json"], 2, "must be a file for a page"),
        (["RUN", "--outt=a"], 2, "did you mean --out?"),
        (["RUN", "more"], 2, "unexpected argument 'more'"),
        (["RUN", "--rows=0"], 2, "rows"),
        (["RUN", "--trace=none.npz"], 2, "there is no file 'none.npz'"),
        (["RUN", "--trace=RUN/config.json"], 65, "cannot be read as .npz"),
        (["RUN", "--trace=RUN/routing.npz", "--trace=other.npz"], 2, "give traces of one model"),
    ],
)
def test_what_cannot_work_is_refused(run_dir, here, capsys, argv, code, words):
    traces.random(0).save("other.npz")
    assert analyse(*(arg.replace("RUN", str(run_dir)) for arg in argv)) == code
    assert words in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["other.npz"]


def test_runs_that_have_nothing_to_analyse(run_dir, tmp_path, capsys):
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    (copy / "data.json").write_text("{}")
    assert analyse(copy) == 65
    shutil.rmtree(copy / "checkpoints")
    assert analyse(copy) == 66
    assert "has no checkpoint yet; train until one is saved" in capsys.readouterr().err
    moejax.save(moejax.load(run_dir), tmp_path / "saved")
    assert analyse(tmp_path / "saved") == 2
    assert "holds a saved model without held-out text; give a run, or --trace" in capsys.readouterr().err


def test_a_dense_model_is_refused(tmp_path, capsys):
    run = recipe.config()
    block = BlockConfig(run.model.groups[0].blocks[0].attn, Dense(16))
    model = dataclasses.replace(run.model, groups=(Group((block,), 1),))
    run = dataclasses.replace(
        run, model=model, train=dataclasses.replace(run.train, losses=run.train.losses[:1])
    )
    dense = trained(tmp_path, run)
    assert not (dense / "routing.npz").exists()
    assert analyse(dense) == 2
    assert "the model has no routers" in capsys.readouterr().err
