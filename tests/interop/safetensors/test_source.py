"""Directories of safetensors: parts of tensors, shards, and indices that lie."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from moejax.errors import CheckpointError, UsageError
from moejax.interop.safetensors import source
from moejax.interop.safetensors.source import INDEX, SINGLE, SafetensorsDir

RNG = np.random.default_rng(0)
A = RNG.normal(size=(3, 4)).astype(np.float32)
B = RNG.integers(0, 100, (2, 3, 4, 5)).astype(np.int16)
C = RNG.normal(size=7).astype(ml_dtypes.bfloat16)


def shards(root: Path, files: dict[str, dict[str, np.ndarray]], **changes: str | None) -> Path:
    """A sharded directory; `changes` are made to the index, None takes a tensor out."""
    for file, tensors in files.items():
        save_file(tensors, root / file)
    weight_map = {name: file for file, tensors in files.items() for name in tensors} | changes
    weight_map = {name: file for name, file in weight_map.items() if file is not None}
    (root / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return root


def two(root: Path, **changes: str | None) -> Path:
    return shards(root, {"x-1.safetensors": {"a": A}, "x-2.safetensors": {"b": B, "c": C}}, **changes)


def refusal(root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsDir(root)
    return str(caught.value)


def test_a_single_file(tmp_path):
    save_file({"a": A, "c": C, "scalar": np.array(2.5), "none": np.zeros((0, 3))}, tmp_path / SINGLE)
    found = SafetensorsDir(tmp_path)
    assert set(found.names()) == {"a", "c", "scalar", "none"}
    assert found.files == [SINGLE]
    info = found.info("c")
    assert (info.shape, info.dtype, info.file) == ((7,), C.dtype, str(tmp_path / SINGLE))
    np.testing.assert_array_equal(found.read("a"), A, strict=True)
    np.testing.assert_array_equal(found.read("a", (1,)), A[1], strict=True)
    np.testing.assert_array_equal(found.read("a", (slice(1, 3), 2)), A[1:3, 2], strict=True)
    np.testing.assert_array_equal(found.read("c", (slice(2, None),)), C[2:], strict=True)
    np.testing.assert_array_equal(found.read("scalar"), np.array(2.5), strict=True)
    np.testing.assert_array_equal(found.read("none", (slice(0, 0),)), np.zeros((0, 3)), strict=True)


def test_shards(tmp_path):
    found = SafetensorsDir(two(tmp_path))
    assert found.files == ["x-1.safetensors", "x-2.safetensors"]
    assert found.info("b").file.endswith("x-2.safetensors")
    np.testing.assert_array_equal(found.read("b", (1,)), B[1], strict=True)


def indices(shape: tuple[int, ...]):
    """An index of leading dims: numbers and slices of step 1."""

    def of(size: int):
        pair = st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda p: slice(min(p), max(p)))
        return st.one_of(pair, st.just(slice(None)), st.integers(0, size - 1))

    return st.integers(0, len(shape)).flatmap(lambda n: st.tuples(*map(of, shape[:n])))


@settings(max_examples=100)
@given(indices(B.shape), st.booleans(), st.sampled_from([1, 100, 10**6]))
def test_any_part(tmp_path_factory, index, direct, block):
    root = tmp_path_factory.mktemp("parts")
    save_file({"a": A, "b": B}, root / SINGLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "DIRECT_BYTES", 1 if direct else 10**6)
        patch.setattr(source, "BLOCK_BYTES", block)
        np.testing.assert_array_equal(SafetensorsDir(root).read("b", index), B[index], strict=True)


@pytest.mark.parametrize("index", [(3,), (-1,), (slice(0, 2, 2),), (0, 0, 0), (slice(None, None, -1),)])
def test_indices_that_are_not_offered(tmp_path, index):
    save_file({"a": A}, tmp_path / SINGLE)
    with pytest.raises(IndexError):
        SafetensorsDir(tmp_path).read("a", index)


def test_reads_no_more_than_the_part(tmp_path, monkeypatch):
    save_file({"b": B}, tmp_path / SINGLE)
    found, reads = SafetensorsDir(tmp_path), []
    read_into = source.safe_files.read_into
    monkeypatch.setattr(
        source.safe_files, "read_into", lambda fd, m, at: (reads.append(len(m)), read_into(fd, m, at))
    )
    found.read("b", (1, slice(1, 3)))
    assert reads == [2 * 4 * 5 * 2]
    reads.clear()
    found.read("b", (slice(None), 1))  # two blocks, read from the first to the last byte
    assert reads == [(3 * 20 + 20) * 2]


def test_a_shard_that_is_not_there(tmp_path):
    (two(tmp_path) / "x-2.safetensors").unlink()
    assert "x-2.safetensors cannot be read: No such file" in refusal(tmp_path)


def test_a_shard_that_was_cut(tmp_path):
    path = two(tmp_path) / "x-2.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "x-2.safetensors is no safetensors file that can be trusted: tensor " in refusal(tmp_path)


def test_tensors_against_the_index(tmp_path):
    assert "x-2.safetensors has no tensor 'd'" in refusal(two(tmp_path, d="x-2.safetensors"))
    assert "x-2.safetensors has a tensor 'c' of which" in refusal(two(tmp_path, c=None))
    assert "x-1.safetensors has no tensor 'c'" in refusal(two(tmp_path, c="x-1.safetensors"))
    shards(tmp_path, {"x-1.safetensors": {"a": A}, "x-2.safetensors": {"a": A}})
    (tmp_path / INDEX).write_text(
        json.dumps({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}})
    )
    assert "tensor 'a' is in" in refusal(tmp_path)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/x.safetensors", "y/x.safetensors", "y\\x.safetensors"]
)
def test_paths_in_the_index(tmp_path, file):
    root = tmp_path / "model"
    root.mkdir()
    for place in (tmp_path, root, root / "y"):
        place.mkdir(exist_ok=True)
        save_file({"a": A}, place / "x.safetensors")
    assert "is no plain name" in refusal(shards(root, {"x.safetensors": {"a": A}}, a=file))


@pytest.mark.parametrize("file", ["tokenizer.json", "model.bin", ""])
def test_other_files_in_the_index(tmp_path, file):
    assert "no .safetensors file" in refusal(two(tmp_path, a=file))


@pytest.mark.parametrize("body", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {}}])
def test_an_index_that_is_none(tmp_path, body):
    (tmp_path / INDEX).write_text(json.dumps(body))
    assert INDEX in refusal(tmp_path)


def test_links_that_leave_the_directory(tmp_path):
    root = tmp_path / "model"
    root.mkdir()
    two(root)
    (root / "x-1.safetensors").rename(tmp_path / "x-1.safetensors")
    (root / "x-1.safetensors").symlink_to("../x-1.safetensors")
    assert "x-1.safetensors is a link to" in refusal(root)
    (root / INDEX).rename(tmp_path / INDEX)
    (root / INDEX).symlink_to(tmp_path / INDEX)
    assert f"{INDEX} is a link to" in refusal(root)


def test_a_snapshot_of_the_hub(tmp_path):
    root = tmp_path / "models--o--n" / "snapshots" / "0"
    root.mkdir(parents=True)
    two(root)
    blobs = root.parent.parent / "blobs"
    blobs.mkdir()
    for i, path in enumerate(sorted(root.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(f"../../blobs/{i}")
    np.testing.assert_array_equal(SafetensorsDir(root).read("a"), A)


def test_nothing_to_read(tmp_path):
    with pytest.raises(UsageError, match=r"has no model\.safetensors and no model\.safetensors\.index"):
        SafetensorsDir(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin: a pickle can run code .* save_pretrained"):
        SafetensorsDir(tmp_path)


def test_a_file_that_shrinks_while_it_is_used(tmp_path):
    save_file({"a": A}, tmp_path / SINGLE)
    found = SafetensorsDir(tmp_path)
    with open(tmp_path / SINGLE, "r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: it ends at byte 100"):
        found.read("a")
