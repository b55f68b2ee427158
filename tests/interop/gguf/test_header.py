"""The header reader: what it finds in a sound file, and what it says of others."""

import re
import struct

import numpy as np
import pytest

from moejax.errors import CheckpointError
from moejax.interop.gguf import cursor
from moejax.interop.gguf.header import read_header
from tests.interop.gguf import toys
from tests.interop.gguf.toys import ARRAY, BOOL, DATA, ENTRIES, INFOS, STRING, U32, array, entry, info, text

ARCHITECTURE = ENTRIES[:1]
MAX = 2**64 - 1


def read(tmp_path, raw: bytes):
    path = tmp_path / "toy.gguf"
    path.write_bytes(raw)
    return read_header(path)


def aligned(alignment: int) -> bytes:
    return toys.file([entry("general.alignment", U32, struct.pack("<I", alignment))])


@pytest.mark.parametrize("version", [2, 3])
def test_what_a_sound_file_says(tmp_path, version):
    header = read(tmp_path, toys.file(ENTRIES, INFOS, DATA, version))
    found = dict(header.metadata)
    assert list(found.pop("tokenizer.tokens")) == ["a", "\u00e9", ""]
    np.testing.assert_array_equal(found.pop("tokenizer.kinds"), [7, 9])
    nested = found.pop("nested")
    assert [list(part) for part in nested] == [[False], []]
    assert found == {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.eps": 0.5,
        "tokenizer.add": True,
    }
    w, b = header.tensors["w"], header.tensors["b"]
    assert (w.shape, w.kind.name, w.size) == ((2, 3), "F32", 24)
    assert (b.shape, b.kind.name, b.size) == ((2,), "F16", 4)
    assert b.at - w.at == 32
    assert (tmp_path / "toy.gguf").read_bytes()[w.at :] == DATA
    assert header.version == version


def test_the_padding_behind_the_last_tensor_may_be_missing(tmp_path):
    whole = toys.small()
    for cut in (0, 1, 28):
        read(tmp_path, whole[: len(whole) - cut])
    with pytest.raises(CheckpointError, match=r"tensor 'b' ends at byte"):
        read(tmp_path, whole[:-29])


def test_strings_are_decoded_when_asked(tmp_path):
    raw = toys.file([*ARCHITECTURE, entry("t", ARRAY, array(STRING, 1, text(b"\xff")))])
    tokens = read(tmp_path, raw).metadata["t"]
    assert len(tokens) == 1
    with pytest.raises(CheckpointError, match=r"toy.gguf: at byte \d+: a string of an array is not UTF-8"):
        tokens[0]


BAD = {
    "another format": (b"PK\3\4" + bytes(60), "at byte 0: a GGUF file begins with b'GGUF'"),
    "empty": (b"", "at byte 0: the magic needs 4 bytes or more, the file has 0 left"),
    "version 1": (toys.file(version=1), r"at byte 4: GGUF version 1; versions \(2, 3\)"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "at byte 4: the file is big-endian"),
    "too many tensors": (b"GGUF" + struct.pack("<IQQ", 3, MAX, 0), "at byte 8: 18446744073709551615 tensors"),
    "tensors that are not there": (
        b"GGUF" + struct.pack("<IQQ", 3, 900_000, 0),
        "at byte 24: a header of 900000 tensors needs 28800000 bytes or more, the file has 0 left",
    ),
    "entries that are not there": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, MAX),
        "at byte 24: a header of 18446744073709551615 metadata entries",
    ),
    "key twice": (toys.file(ARCHITECTURE * 2), "'general.architecture' is there twice"),
    "no key": (toys.file([entry("", BOOL, b"\1")]), "at byte 24: an empty key"),
    "long key": (toys.file([entry("k" * 513, BOOL, b"\1")]), "at byte 24: a metadata key has 513 bytes, 512"),
    "key not UTF-8": (toys.file([text(b"a\xff") + bytes(9)]), "at byte 33: a metadata key is not UTF-8"),
    "text not UTF-8": (toys.file([entry("k", STRING, text(b"\xff"))]), "at byte 45: k is not UTF-8"),
    "long text": (
        toys.file([entry("k", STRING, struct.pack("<Q", MAX))]),
        "at byte 37: k has 18446744073709551615 bytes, 67108864 are allowed",
    ),
    "text not there": (
        toys.file([entry("k", STRING, struct.pack("<Q", 5000))]),
        "at byte 45: k needs 5000 bytes or more, the file has 19 left",
    ),
    "type": (toys.file([entry("k", 13, bytes(8))]), "at byte 33: k has type 13, which GGUF does not have"),
    "item type": (
        toys.file([entry("k", ARRAY, array(99, 1, b""))]),
        "the items of k have type 99",
    ),
    "items not there": (
        toys.file([entry("k", ARRAY, array(U32, MAX, b""))]),
        "k with 18446744073709551615 items needs 73786976294838206460 bytes",
    ),
    "truth value": (toys.file([entry("k", BOOL, b"\2")]), "at byte 37: k has a truth value of 2"),
    "dims": (toys.file([], [info("w", (1,) * 5)]), "tensor 'w' has 5 dims, 1 to 4 are allowed"),
    "no dims": (toys.file([], [info("w", ())]), "tensor 'w' has 0 dims"),
    "empty dim": (toys.file([], [info("w", (4, 0))]), r"tensor 'w' of type F32 is \(0, 4\)"),
    "part of a block": (toys.file([], [info("w", (33, 2), toys.Q8_0)]), r"'w' of type Q8_0 is \(2, 33\)"),
    "type of tensor": (
        toys.file([], [info("w", (1,), 4)]),
        "'w' has type 4, which GGUF does not",
    ),
    "size": (
        toys.file([], [info("w", (2**63, 2**63))]),
        "ends at byte 34028236692093846346",
    ),
    "long name": (toys.file([], [info("w" * 600, (1,))], bytes(4)), "the name of a tensor has 600 bytes"),
    "name twice": (
        toys.file([], [info("w", (1,)), info("w", (1,), offset=32)], bytes(64)),
        "tensor 'w' is there twice",
    ),
    "first offset": (
        toys.file([], [info("w", (1,), offset=32)], bytes(64)),
        "offset 32, its place is 0",
    ),
    "overlap": (
        toys.file([], [info("w", (9,)), info("b", (1,), offset=32)], bytes(96)),
        "'b' has offset 32, its place is 64",
    ),
    "hole": (
        toys.file([], [info("w", (1,)), info("b", (1,), offset=64)], bytes(96)),
        "'b' has offset 64, its place is 32",
    ),
    "negative offset": (
        toys.file([], [info("w", (1,), offset=MAX - 31)], bytes(32)),
        "'w' has offset 18446744073709551584, its place is 0",
    ),
    "bytes past the end": (toys.small() + b"\0", "the last tensor ends here"),
    "alignment 0": (aligned(0), "alignment is 0"),
    "alignment 48": (
        aligned(48),
        "is 48; a power of",
    ),
    "alignment 8192": (
        aligned(8192),
        "is 8192; a pow",
    ),
    "alignment text": (
        toys.file([entry("general.alignment", STRING, text("32"))]),
        "alignment is '32'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_file_is_named_with_byte_and_reason(tmp_path, case):
    raw, message = BAD[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tmp_path, raw)
    assert re.match(r"\S*/toy\.gguf: at byte \d+: ", str(caught.value))


def test_another_alignment_is_honoured(tmp_path):
    alignment = entry("general.alignment", U32, struct.pack("<I", 64))
    infos = [info("w", (1,)), info("b", (1,), offset=64)]
    header = read(tmp_path, toys.file([alignment], infos, bytes(68), alignment=64))
    assert [tensor.at % 64 for tensor in header.tensors.values()] == [0, 0]


def nested(depth: int) -> bytes:
    value = array(BOOL, 0, b"")
    for _ in range(depth):
        value = array(ARRAY, 1, value)
    return toys.file([entry("k", ARRAY, value)])


def test_arrays_may_nest_sixty_four_deep(tmp_path):
    read(tmp_path, nested(63))
    with pytest.raises(CheckpointError, match="k nests arrays deeper than 64"):
        read(tmp_path, nested(64))


def test_a_header_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(cursor, "MAX_HEADER", 100)
    with pytest.raises(CheckpointError, match="ends past the 100 bytes that a header may have"):
        read(tmp_path, toys.file([entry("k", STRING, text("x" * 60))]))


def test_every_truncation_is_refused(tmp_path):
    whole = toys.small()
    for size in range(len(whole) - 28):
        with pytest.raises(CheckpointError, match=r"at byte \d+: "):
            read(tmp_path, whole[:size])


@pytest.mark.parametrize("path", ["absent.gguf", "."])
def test_a_path_that_is_no_file(tmp_path, path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        read_header(tmp_path / path)
