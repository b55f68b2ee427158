"""Damage is found and named; what is whole is said to be whole."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import moejax
from moejax import __main__ as door
from moejax.model_files.verify import findings

SHARD = "model-00002-of-00004.safetensors"


def bad(path, values: bool = False) -> dict[str, str]:
    return {found.what: found.note for found in findings(path, values) if not found.good}


def change(path, edit) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def damage(root) -> str:
    """Change a bit of the largest file below `root`; its path there."""
    path = max((file for file in root.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.relative_to(root).as_posix()


def test_a_whole_directory(hub_directory, capsys):
    assert door.main(["verify", str(hub_directory), "--values"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok  ") for line in lines[:-1])
    assert lines[-3:] == [
        "ok  tensors: all 41 are those that the config declares",
        "ok  values: all 41 tensors were read",
        f"{hub_directory} is whole",
    ]


def test_a_shard_that_was_cut(hub_directory, capsys):
    path = hub_directory / SHARD
    path.write_bytes(path.read_bytes()[:-1])
    assert list(bad(hub_directory)) == [SHARD, "files together"]
    assert door.main(["verify", str(hub_directory)]) == 66
    out, err = capsys.readouterr()
    assert f"BAD {SHARD}: " in out
    assert "is not whole: 2 of the checks above failed" in err


def test_a_shard_that_is_missing(hub_directory):
    (hub_directory / SHARD).unlink()
    assert f"{SHARD} cannot be read: No such file" in bad(hub_directory)["files together"]


def test_tensors_that_are_not_the_models(hub_directory, model, tmp_path):
    moejax.save(model, tmp_path / "single", format="hf")
    file = tmp_path / "single" / "model.safetensors"
    name = "model.layers.1.input_layernorm.weight"

    def edit(tensors):
        tensors["more"] = tensors.pop("model.norm.weight")
        tensors[name] = tensors[name][:-1]

    change(file, edit)
    found = bad(tmp_path / "single")
    assert list(found) == ["tensors"]
    assert "tensor 'model.norm.weight' is missing" in found["tensors"]
    assert f"tensor 'more' of {file} has no place" in found["tensors"]
    assert f"tensor '{name}' of {file} is (31,), the config asks for (32,)" in found["tensors"]


def test_values_that_are_no_numbers(hub_directory):
    names = []

    def edit(tensors):
        names.append(next(iter(tensors)))
        tensors[names[0]].flat[3] = np.nan

    change(hub_directory / SHARD, edit)
    assert bad(hub_directory) == {}
    found = bad(hub_directory, values=True)
    assert list(found) == [f"values of {names[0]}"]
    assert f"{SHARD}: 1 values are not finite" in found[f"values of {names[0]}"]


def test_config_and_tokenizer(hub_directory):
    config = json.loads((hub_directory / "config.json").read_text())
    (hub_directory / "config.json").write_text(json.dumps({**config, "surprise": 1}))
    (hub_directory / "tokenizer.json").unlink()
    found = bad(hub_directory)
    assert list(found) == ["tokenizer", "config"]
    assert "surprise=1" in found["config"]


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_the_cache_of_the_hub_is_hashed(hub_directory, tmp_path, algorithm):
    root = tmp_path / "models--o--n"
    snapshot, blobs = root / "snapshots" / ("0" * 40), root / "blobs"
    shutil.copytree(hub_directory, snapshot)
    blobs.mkdir()
    path = snapshot / SHARD
    content = path.read_bytes()
    header = b"" if algorithm == "sha256" else b"blob %d\0" % len(content)
    blob = blobs / hashlib.new(algorithm, header + content).hexdigest()
    path.rename(blob)
    path.symlink_to(blob)
    notes = {found.what: found.note for found in findings(snapshot)}
    assert notes[SHARD].endswith(f"tensors that fill the file, {algorithm} as in the hub")
    assert bad(snapshot) == {}
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert list(bad(snapshot)) == [SHARD]


def test_a_model_of_our_own(own_directory, capsys):
    assert door.main(["verify", str(own_directory)]) == 0
    assert "ok  checkpoints/0: " in capsys.readouterr().out
    name = damage(own_directory / "checkpoints" / "0")
    assert door.main(["verify", str(own_directory)]) == 66
    assert f"BAD checkpoints/0: {name}: its sha256 is not" in capsys.readouterr().out


def test_every_checkpoint_of_a_run(run_directory):
    found = list(findings(run_directory))
    assert [str(finding) for finding in found[:2]] == [
        "ok  config.json: run of 2 layers",
        "ok  tokenizer: 259 tokens",
    ]
    assert [finding.what for finding in found[2:]] == ["checkpoints/5", "checkpoints/10"]
    as_declared = " files with their hashes, 12 parameters as declared"
    assert all(finding.note.endswith(as_declared) for finding in found[2:])
    name = damage(run_directory / "checkpoints" / "5")
    assert list(bad(run_directory)) == ["checkpoints/5"]
    (run_directory / "checkpoints" / "5").rename(run_directory / "checkpoints" / "5.corrupt-1")
    assert bad(run_directory) == {}  # the run goes on from the other
    notes = {found.what: found.note for found in findings(run_directory)}
    assert notes["checkpoints/5.corrupt-1"].startswith(f"set aside as damaged: {name}: its sha256")
    shutil.rmtree(run_directory / "checkpoints" / "10")
    assert bad(run_directory) == {"checkpoints": "there is none; train until one is saved"}


def test_a_checkpoint_of_another_model(run_directory, own_directory):
    shutil.copytree(own_directory / "checkpoints" / "0", run_directory / "checkpoints" / "0")
    assert "the config asks for" in bad(run_directory)["checkpoints/0"]


def test_a_model_without_a_tokenizer(model, tmp_path):
    moejax.save(dataclasses.replace(model, tokenizer=None), tmp_path / "mute", format="hf")
    notes = {found.what: found.note for found in findings(tmp_path / "mute") if found.good}
    assert notes["tokenizer"] == "there is none; prompts are lists of ids"
