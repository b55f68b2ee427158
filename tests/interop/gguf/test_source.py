"""Tensors of GGUF files, whole and in parts, against hand-made blocks and gguf-py."""

import itertools
import struct

import gguf
import numpy as np
import pytest

from moejax.errors import CheckpointError
from moejax.interop.gguf import quants, source
from moejax.interop.gguf.source import GgufFile
from tests.interop.gguf import toys
from tests.interop.gguf.toys import U32, entry, info, text

SHAPE = (3, 4, 512)


def stored(tmp_path, tensors: dict, name: str = "m.gguf"):
    """A file of gguf-py with tensors as (array, type)."""
    path = tmp_path / name
    writer = gguf.GGUFWriter(path, "llama")
    for own, (value, kind) in tensors.items():
        writer.add_tensor(own, quants.encode(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_numbers_are_read_as_they_are(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(toys.small())
    file = GgufFile(path)
    assert list(file.names()) == ["w", "b"]
    assert file.info("w").shape == (2, 3) and file.info("w").dtype == np.float32
    np.testing.assert_array_equal(file.read("w"), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(file.read("w", (1, slice(1, 3))), [4, 5])
    np.testing.assert_array_equal(file.read("b"), np.array([1.5, -2], np.float16))
    assert file.read("b", (1,)) == -2


def test_a_block_of_eight_bits_by_hand(tmp_path):
    block = np.array([0.5], "<f2").tobytes() + np.arange(-16, 16, dtype=np.int8).tobytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(toys.file([], [info("w", (32,), toys.Q8_0)], block))
    np.testing.assert_array_equal(GgufFile(path).read("w"), np.arange(-8, 8, 0.5))


def test_a_block_of_four_bits_by_hand(tmp_path):
    low, high = np.arange(16), np.arange(15, -1, -1)  # of byte i: number i and number i + 16
    block = np.array([2, -1], "<f2").tobytes() + (low | high << 4).astype(np.uint8).tobytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(toys.file([], [info("w", (32,), 3)], block))
    np.testing.assert_array_equal(GgufFile(path).read("w"), 2 * np.concatenate([low, high]) - 1)


def raw_file(path, kind, seed: int):
    """A tensor of SHAPE with random blocks whose scales are finite, and its bytes."""
    rng = np.random.default_rng(seed)
    row = quants.row_bytes(kind, SHAPE[-1])
    raw = rng.integers(0, 256, (*SHAPE[:-1], row), np.uint8)
    block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = raw.reshape(-1, block_bytes)
    at = block_bytes - 2 if kind == gguf.GGMLQuantizationType.Q6_K else 0  # there the scale comes last
    blocks[:, at : at + 2] = rng.normal(size=(len(blocks), 1)).astype("<f2").view(np.uint8)
    if kind in quants.PLAIN:
        raw = quants.encode(rng.normal(size=SHAPE).astype(np.float32), kind)
    path.write_bytes(toys.file([], [info("w", SHAPE[::-1], int(kind))], raw.tobytes()))
    return raw


@pytest.mark.parametrize("kind", quants.KINDS, ids=lambda kind: kind.name)
def test_every_part_of_every_type(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(source, "CHUNK_BYTES", 3 * quants.row_bytes(kind, SHAPE[-1]))
    path = tmp_path / "m.gguf"
    raw = raw_file(path, kind, 0)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(raw, kind)
    file = GgufFile(path)
    assert file.info("w").shape == SHAPE
    assert file.read("w").dtype == file.info("w").dtype
    np.testing.assert_array_equal(file.read("w").astype(np.float32), want)
    firsts = (slice(None), 1, slice(1, 3), slice(2, 2))
    lasts = (slice(None), 5, slice(32, 100))
    for index in itertools.product(firsts, firsts, lasts):
        np.testing.assert_array_equal(file.read("w", index).astype(np.float32), want[index])
    np.testing.assert_array_equal(file.read("w", (slice(1, 3),)).astype(np.float32), want[1:3])


def test_eight_bits_lose_half_a_step_at_most():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(7, 96)).astype(np.float32)
    back = quants.decode(quants.encode(rows, quants.Kind.Q8_0), quants.Kind.Q8_0)
    step = np.abs(rows.reshape(7, 3, 32)).max(-1, keepdims=True) / 127
    assert np.all(np.abs(back - rows).reshape(7, 3, 32) <= step * 0.501 + 127 * step * 2**-11)


def test_a_type_that_is_not_read_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(toys.file([], [info("w", (256,), int(gguf.GGMLQuantizationType.IQ2_XXS))], bytes(66)))
    with pytest.raises(
        CheckpointError, match=r"m.gguf: at byte 64: tensor 'w' has type IQ2_XXS; convert .* Q6_K"
    ):
        GgufFile(path)


def split(tmp_path, numbers=(0, 1, 2), counts=(3, 3, 3), names=("a", "b", "c"), promised: int = 3):
    """A model in three files, and the path of the first."""
    for place in range(3):
        entries = [
            entry("split.no", 2, struct.pack("<H", numbers[place])),
            entry("split.count", 2, struct.pack("<H", counts[place])),
            entry("split.tensors.count", U32, struct.pack("<I", promised)),
            *([entry("general.architecture", toys.STRING, text("llama"))] if place == 0 else []),
        ]
        file = toys.file(entries, [info(names[place], (1,))], struct.pack("<f", place))
        (tmp_path / f"m-{place + 1:05d}-of-00003.gguf").write_bytes(file)
    return tmp_path / "m-00001-of-00003.gguf"


@pytest.mark.parametrize("any_part", [1, 3])
def test_files_of_a_split_model_are_opened_together(tmp_path, any_part):
    split(tmp_path)
    file = GgufFile(tmp_path / f"m-{any_part:05d}-of-00003.gguf")
    assert file.metadata["general.architecture"] == "llama"
    assert [file.read(name, (0,)) for name in file.names()] == [0, 1, 2]
    assert file.info("b").file.endswith("m-00002-of-00003.gguf")


def test_a_missing_part_is_named(tmp_path):
    path = split(tmp_path)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"one of 3 files, of which m-00002-of-00003\.gguf are missing"):
        GgufFile(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"numbers": (0, 2, 1)}, r"m-00002\S*: says it is \(2, 3\) .* here is \(1, 3\)"),
        ({"counts": (3, 3, 4)}, r"m-00003\S*: says it is \(2, 4\)"),
        ({"names": ("a", "b", "a")}, r"m-00003\S*: tensor 'a' is in \S*m-00001"),
        ({"promised": 4}, "the files hold 3 tensors, the first one says 4"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, wrong, message):
    with pytest.raises(CheckpointError, match=message):
        GgufFile(split(tmp_path, **wrong))


def test_a_part_under_another_name(tmp_path):
    path = split(tmp_path).rename(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"one of 3 files, .* name it NAME-00001-of-00003\.gguf"):
        GgufFile(path)
