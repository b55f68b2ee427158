"""What a model is said to be."""

import json

import pytest

from moejax import __main__ as door
from moejax.model_files import inspect


def test_a_directory_of_the_hub(hub_directory, capsys):
    assert door.main(["inspect", str(hub_directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:10] == [
        f"path        {hub_directory}",
        "kind        directory in the layout of the Hugging Face hub",
        "family      mixtral",
        "parameters  36,256, of which a token passes 30,112",
        "stored as   float32 100.0%",
        "layers      2 of width 32",
        "experts     4, 2 a token",
        "vocabulary  272",
        "context     64 tokens",
        "tokenizer   259 tokens; a text begins with '<|bos|>' and ends with '<|eos|>'; no chat template",
    ]
    assert any(line.endswith(" KiB  model-00001-of-00004.safetensors") for line in lines)


def test_json(own_directory, capsys):
    assert door.main(["inspect", str(own_directory), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "model of moejax.save"
    assert (facts["parameters"], facts["context"], facts["checkpoints"]) == (36256, 64, [0])
    assert facts["experts"] == [{"count": 4, "per_token": 2}]
    assert facts["files"]["config.json"] == (own_directory / "config.json").stat().st_size


def test_a_run(run_directory, capsys):
    assert door.main(["inspect", str(run_directory)]) == 0
    out = capsys.readouterr().out
    assert "kind        training run\nname        tiny\nparameters  239,936" in out
    assert "\ncheckpoints 5, 10\n" in out


def test_a_family_that_nobody_knows(hub_directory, capsys):
    (hub_directory / "config.json").write_text('{"model_type": "mixtrall"}')
    (hub_directory / "tokenizer.json").write_text("{}")
    assert door.main(["inspect", str(hub_directory)]) == 0
    out = capsys.readouterr().out
    assert "family      mixtrall\nparameters  36,256\nstored as   float32 100.0%\nfiles" in out
    assert "unknown: " in out
    assert "'mixtrall' is not known here" in out
    assert "tokenizer.json is not a readable tokenizer" in out


def test_nothing_there(tmp_path, capsys):
    assert door.main(["inspect", "no such thing"]) == 2
    assert "there is no file or directory 'no such thing'" in capsys.readouterr().err
    assert door.main(["inspect", str(tmp_path)]) == 2
    assert "has no config.json, so it holds no model" in capsys.readouterr().err
    assert door.main(["inspect"]) == 2
    assert "which model?" in capsys.readouterr().err


def test_small_shares_are_not_none():
    facts = {"path": "a", "kind": "b", "name": None, "family": None, "parameters": 10_000, "context": None}
    facts |= {"stored": {"Q8_0": 9_999, "F32": 1}, "tokenizer": None, "checkpoints": [], "files": {}}
    assert "stored as   Q8_0 100.0%, F32 <0.1%" in list(inspect.lines(facts | {"unknown": []}))


@pytest.mark.parametrize(
    "num_bytes, text",
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 << 29, "1.50 GiB"), (2**50, "1024.00 TiB")],
)
def test_sizes(num_bytes, text):
    assert inspect.size(num_bytes) == text
