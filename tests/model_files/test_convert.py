"""From anything to anything, whole or not at all."""

import contextlib
import io
from pathlib import Path

import jax
import numpy as np
import pytest

import moejax
from moejax import __main__ as door
from moejax.interop.safetensors.source import SafetensorsDir
from moejax.model_files import convert


def same(a: moejax.Model, b: moejax.Model) -> None:
    assert a.cfg == b.cfg
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_round_trip_of_every_bit(hub_directory, tmp_path, model, capsys):
    own, back = tmp_path / "own", tmp_path / "back"
    assert door.main(["convert", str(hub_directory), str(own), "--format=moejax"]) == 0
    assert door.main(["convert", str(own), str(back), "--max_shard_gib=0.00005"]) == 0
    assert capsys.readouterr().out == f"done: {own}\ndone: {back}\n"
    first, second = SafetensorsDir(hub_directory), SafetensorsDir(back)
    assert len(second.files) > 2
    assert set(first.names()) == set(second.names())
    for name in first.names():
        np.testing.assert_array_equal(first.read(name), second.read(name), strict=True)
    same(moejax.load(back), moejax.load(own))
    assert (back / "config.json").read_bytes() == (hub_directory / "config.json").read_bytes()
    assert (back / "tokenizer.json").read_bytes() == (hub_directory / "tokenizer.json").read_bytes()


def test_gguf_by_its_name(hub_directory, tmp_path, model):
    assert door.main(["convert", str(hub_directory), str(tmp_path / "a.gguf")]) == 0
    same(moejax.load(tmp_path / "a.gguf"), model)


def test_rounding(hub_directory, tmp_path):
    assert door.main(["convert", str(hub_directory), str(tmp_path / "b"), "--dtype=bfloat16"]) == 0
    source = SafetensorsDir(tmp_path / "b")
    assert {str(source.info(name).dtype) for name in source.names()} == {"bfloat16"}


@pytest.mark.parametrize(
    "flags, told",
    [
        ([], "where to? python -m moejax convert SOURCE TARGET"),
        (["hub"], "hub exists already; choose a path where there is nothing yet"),
        (["no/where"], "there is no directory"),
        (["new", "--tensor_type=Q8_0"], "--tensor_type is for GGUF files"),
        (["new", "--format=zip"], "should be one of <hf|gguf|moejax>"),
        (["new", "--family=gemma3"], "gemma3"),
    ],
)
def test_what_is_refused(hub_directory, flags, told, capsys, monkeypatch):
    monkeypatch.chdir(hub_directory.parent)
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert door.main(["convert", "hub", *flags]) == 2
    assert told in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_a_source_that_is_damaged(hub_directory, tmp_path, capsys):
    path = next(hub_directory.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    assert door.main(["convert", str(hub_directory), str(tmp_path / "new")]) == 66
    assert path.name in capsys.readouterr().err
    assert [found.name for found in tmp_path.iterdir()] == ["hub"]


def test_progress_is_for_terminals(monkeypatch):
    with convert.progress("reading", None) as tell:
        assert tell is None

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stderr", Terminal())
    with convert.progress("reading", lambda: 2) as tell:
        tell("[bold]a.weight")
    shown = convert.sys.stderr.getvalue()
    assert "1/2" in shown
    assert "[bold]a.weight" in shown


def test_the_bar_ends_where_the_work_does(hub_directory, tmp_path, monkeypatch):
    told, counts = [], []

    @contextlib.contextmanager
    def progress(what, count):
        counts.append(count())
        told.append([])
        yield told[-1].append

    monkeypatch.setattr(convert, "progress", progress)
    assert door.main(["convert", str(hub_directory), str(tmp_path / "new")]) == 0
    assert [len(names) for names in told] == counts == [13, 41]
