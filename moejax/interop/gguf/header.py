"""The header of a GGUF file: metadata, and where each tensor lies.

Nothing in a file is believed: a count must fit into what the file has left before anything is allocated for
it, names are unique, and tensors lie one behind the other without holes, overlaps or bytes past the end.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from moejax.errors import CheckpointError
from moejax.interop.gguf.cursor import Cursor
from moejax.interop.safe_files import opened

VERSIONS = (2, 3)
MAX_TENSORS = 1_000_000
MAX_DIMS = 4
MAX_NAME = 512  # bytes
MAX_NESTING = 64
MAX_ALIGNMENT = 4096
DEFAULT_ALIGNMENT = 32

SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 10, 11, 12), "BbHhIifQqd", strict=True))  # as in struct and numpy
BOOL, STRING, ARRAY = 7, 8, 9
SMALLEST = {BOOL: 1, STRING: 8, ARRAY: 12} | {code: np.dtype(form).itemsize for code, form in SCALARS.items()}
SMALLEST_ENTRY = 8 + 4 + 1  # bytes of a key's length, its type and a value
SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8  # bytes of a name's length, the dims' number, one dim, type, offset


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one tensor lies."""

    name: str
    shape: tuple[int, ...]  # slowest dim first, as numpy has it: the reverse of what the file says
    kind: GGMLQuantizationType
    at: int  # its first byte in the file
    size: int  # bytes
    path: str  # of the file


@dataclasses.dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself; strings of arrays are decoded at their first use."""

    path: str
    version: int
    metadata: Mapping[str, object]  # int, float, bool, str, np.ndarray, Texts, or a list of arrays
    tensors: Mapping[str, Tensor]


def read_header(path: str | os.PathLike) -> Header:
    """The checked header of a GGUF file.

    Raises:
      CheckpointError: the file is not a GGUF file of version 2 or 3, or it is damaged; the message names
        the path, the byte and the reason.
    """
    with opened(Path(path)) as fd, open(fd, "rb", closefd=False) as file:
        return _read(Cursor(file, os.fspath(path)))


def _read(cursor: Cursor) -> Header:
    version = _version(cursor)
    num_tensors = cursor.number("<Q", "the number of tensors")
    if num_tensors > MAX_TENSORS:
        raise cursor.damaged(f"{num_tensors} tensors, {MAX_TENSORS} are allowed", cursor.at - 8)
    num_entries = cursor.number("<Q", "the number of metadata entries")
    cursor.need(num_entries, SMALLEST_ENTRY, f"a header of {num_entries} metadata entries")
    metadata = {}
    for _ in range(num_entries):
        start = cursor.at
        key = cursor.text("a metadata key", MAX_NAME)
        if not key or key in metadata:
            raise cursor.damaged(f"metadata key {key!r} is there twice" if key else "an empty key", start)
        metadata[key] = _value(cursor, cursor.number("<I", f"the type of {key}"), key, 0)
    cursor.need(num_tensors, SMALLEST_TENSOR, f"a header of {num_tensors} tensors")
    entries = [_entry(cursor) for _ in range(num_tensors)]
    return Header(cursor.path, version, metadata, _placed(cursor, entries, _alignment(cursor, metadata)))


def _version(cursor: Cursor) -> int:
    magic = cursor.take(4, "the magic")
    if magic != b"GGUF":
        raise cursor.damaged(f"a GGUF file begins with b'GGUF', this one with {magic!r}", 0)
    version = cursor.number("<I", "the version")
    if version in (known << 24 for known in VERSIONS):
        raise CheckpointError(
            f"{cursor.path}: at byte 4: the file is big-endian; convert it to little-endian"
        )
    if version not in VERSIONS:
        raise cursor.damaged(f"GGUF version {version}; versions {VERSIONS} are read", 4)
    return version


def _value(cursor: Cursor, code: int, key: str, depth: int):
    if code in SCALARS:
        value = cursor.number(f"<{SCALARS[code]}", key)
        return float32(value) if SCALARS[code] == "f" else value
    if code == BOOL:
        return bool(_bools(cursor, 1, key)[0])
    if code == STRING:
        return cursor.text(key)
    if code != ARRAY:
        raise cursor.damaged(f"{key} has type {code}, which GGUF does not have", cursor.at - 4)
    if depth == MAX_NESTING:
        raise cursor.damaged(f"{key} nests arrays deeper than {MAX_NESTING}")
    item = cursor.number("<I", f"the type of the items of {key}")
    count = cursor.number("<Q", f"the number of items of {key}")
    if item not in SMALLEST:
        raise cursor.damaged(f"the items of {key} have type {item}, which GGUF does not have", cursor.at - 12)
    cursor.need(count, SMALLEST[item], f"{key} with {count} items")
    if item in SCALARS:
        dtype = np.dtype(f"<{SCALARS[item]}")
        return np.frombuffer(cursor.take(count * dtype.itemsize, key), dtype)
    if item == BOOL:
        return _bools(cursor, count, key)
    if item == STRING:
        return cursor.texts(count, key)
    return [_value(cursor, ARRAY, key, depth + 1) for _ in range(count)]


def float32(value: float) -> float:
    """The shortest decimal that float32 rounds to the same: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _bools(cursor: Cursor, count: int, key: str) -> np.ndarray:
    raw = np.frombuffer(cursor.take(count, key), np.uint8)
    if raw.size and raw.max() > 1:
        raise cursor.damaged(f"{key} has a truth value of {raw.max()}", cursor.at - count)
    return raw.astype(bool)


def _entry(cursor: Cursor) -> tuple[int, Tensor]:
    """(byte of the entry, the tensor with its offset among the data as `at`)."""
    start = cursor.at
    name = cursor.text("the name of a tensor", MAX_NAME)
    num_dims = cursor.number("<I", f"the dims of {name!r}")
    if not 1 <= num_dims <= MAX_DIMS:
        reason = f"tensor {name!r} has {num_dims} dims, 1 to {MAX_DIMS} are allowed"
        raise cursor.damaged(reason, cursor.at - 4)
    shape = tuple(cursor.number("<Q", f"the dims of {name!r}") for _ in range(num_dims))[::-1]
    code = cursor.number("<I", f"the type of {name!r}")
    try:
        kind = GGMLQuantizationType(code)
    except ValueError:
        reason = f"tensor {name!r} has type {code}, which GGUF does not have"
        raise cursor.damaged(reason, cursor.at - 4) from None
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if min(shape) < 1 or shape[-1] % block:
        reason = f"tensor {name!r} of type {kind.name} is {shape}; rows are whole blocks of {block}"
        raise cursor.damaged(reason, start)
    size = math.prod(shape) // block * block_bytes
    return start, Tensor(name, shape, kind, cursor.number("<Q", f"the offset of {name!r}"), size, cursor.path)


def _alignment(cursor: Cursor, metadata: Mapping[str, object]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    whole = isinstance(alignment, int) and not isinstance(alignment, bool)
    if not whole or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        reason = f"general.alignment is {alignment!r}; a power of two up to {MAX_ALIGNMENT} is allowed"
        raise cursor.damaged(reason)
    return alignment


def _placed(cursor: Cursor, entries: list[tuple[int, Tensor]], alignment: int) -> dict[str, Tensor]:
    """The tensors with their place in the file, which they must fill in order to the end."""
    first = _padded(cursor.at, alignment)
    placed, end = {}, cursor.at
    for start, tensor in entries:
        if tensor.name in placed:
            raise cursor.damaged(f"tensor {tensor.name!r} is there twice", start)
        wanted = _padded(end, alignment)
        at = first + tensor.at
        if at != wanted:
            reason = f"tensor {tensor.name!r} has offset {tensor.at}, its place is {wanted - first}"
            raise cursor.damaged(reason, start)
        end = at + tensor.size
        if end > cursor.size:
            reason = f"tensor {tensor.name!r} ends at byte {end}, the file has {cursor.size}"
            raise cursor.damaged(reason, start)
        placed[tensor.name] = dataclasses.replace(tensor, at=at)
    if not end <= cursor.size <= _padded(end, alignment):
        raise cursor.damaged(f"the last tensor ends here, the file at byte {cursor.size}", end)
    return placed


def _padded(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment
