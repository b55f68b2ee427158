"""The manifest: a known file by hand, every kind of damage, and no bit that may flip unseen."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from moejax.training import manifest
from moejax.training.manifest import FileEntry, Manifest, ManifestError, Problem, Tensor


@pytest.fixture
def step(tmp_path):
    """A step directory with two files."""
    directory = tmp_path / "40"
    (directory / "arrays").mkdir(parents=True)
    (directory / "arrays" / "a").write_bytes(b"abc")
    (directory / "arrays" / "b").write_bytes(bytes(range(200)))
    content = Manifest(40, manifest.seal(directory), (Tensor("w", (2, 3), "float32"),), {"metric": 1.5})
    (directory / manifest.NAME).write_bytes(content.to_json())
    return directory


def test_worked_example(step):
    content = manifest.read(step)
    assert content.files[0] == FileEntry(
        "arrays/a", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # the SHA-256 of "abc", as in FIPS 180-2
    assert content.num_bytes == 203
    assert content.meta == {"metric": 1.5}
    assert content.tensors_sha256 == hashlib.sha256(b'[["w",[2,3],"float32"]]').hexdigest()
    assert manifest.verify(step) == []


def test_json_round_trip(step):
    content = manifest.read(step)
    assert Manifest.from_json(content.to_json()) == content
    assert json.loads(content.to_json())["tensors"] == [{"name": "w", "shape": [2, 3], "dtype": "float32"}]


def test_each_file_is_checked_as_hard_as_asked(step):
    (step / "arrays" / "a").write_bytes(b"abd")
    (step / "arrays" / "b").write_bytes(b"")
    assert manifest.verify(step, "off") == []
    assert manifest.verify(step, "size") == [Problem("arrays/b", "has 0 bytes, the manifest says 200")]
    assert [problem.file for problem in manifest.verify(step, "full")] == ["arrays/a", "arrays/b"]


def test_hashing_can_be_shared(step):
    (step / "arrays" / "b").unlink()
    found = [manifest.verify(step, "full", slice(process, None, 2)) for process in range(2)]
    assert found == [[], [Problem("arrays/b", "is missing")]]


def test_each_process_seals_what_it_wrote(tmp_path):
    for name in ("manifest.ocdbt", "ocdbt.process_0/d/x", "ocdbt.process_1/d/y", "array_metadatas/process_1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    sealed = [[entry.path for entry in manifest.seal(tmp_path, process)] for process in range(3)]
    assert sealed[0] == ["manifest.ocdbt", "ocdbt.process_0/d/x"]
    assert sealed[1] == ["array_metadatas/process_1", "ocdbt.process_1/d/y"]
    assert sealed[2] == []


def test_no_flipped_bit_of_the_manifest_goes_unseen(step):
    good, path = manifest.read(step), step / manifest.NAME
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(data) * 8, size=300):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        problems = manifest.verify(step)
        if not problems:  # it can only have hit what carries no meaning
            assert manifest.read(step) == good
        else:
            assert problems[0].file == manifest.NAME


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"sha256": 1}'])
def test_what_is_no_manifest_is_said_to_be_none(step, data):
    (step / manifest.NAME).write_bytes(data)
    with pytest.raises(ManifestError):
        manifest.read(step)


@pytest.mark.parametrize("path", ["/etc/passwd", "../41/arrays/a", "arrays/../../x"])
def test_paths_stay_within_the_step(step, path):
    content = dataclasses.replace(manifest.read(step), files=(FileEntry(path, 3, "0"),))
    with pytest.raises(ManifestError, match="outside"):
        Manifest.from_json(content.to_json())


def test_a_step_under_another_number_is_found_out(step):
    moved = step.rename(step.with_name("50"))
    assert manifest.verify(moved) == [Problem(manifest.NAME, "is of step 40")]


def test_another_format_is_refused(step, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", 2)
    with pytest.raises(ManifestError, match="format 1, this version of moejax reads 2"):
        manifest.read(step)
