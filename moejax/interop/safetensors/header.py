"""The header of a safetensors file: which tensors it holds and where, believed only after checks.

A file is the length of the header (8 bytes), the header, and the tensors end to end. The header is JSON,

    {"__metadata__": {"format": "pt"}, "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}

and is read one entry at a time: a hostile one is refused at its first bad entry, before it costs memory.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moejax.errors import CheckpointError
from moejax.interop import json_file, safe_files
from moejax.interop.safetensors.dtypes import DTYPES

MAX_BYTES = 100_000_000
MAX_METADATA_BYTES = 8 << 20
MAX_ENTRY_BYTES = 4096
MAX_TENSORS = 1_000_000
MAX_NAME_BYTES = 512
MAX_DIMS = 8
MAX_SIZE = 2**63 - 1  # of a dim, an offset, a product of dims
PREFIX = 8  # bytes of the header's length
METADATA = "__metadata__"

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_NAME = re.compile(rb"\s*+(" + _STRING + rb")\s*+:\s*+", re.DOTALL)
_FLAT_OBJECT = re.compile(rb"(\{(?:[^{}\"]++|" + _STRING + rb")*+\})\s*+([,}])", re.DOTALL)
_pairs_of = json.JSONDecoder(object_pairs_hook=tuple).decode


class Entry(NamedTuple):
    """One tensor: what it is and which bytes of the file it has."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name.

    Raises:
      CheckpointError: the file cannot be read, or its header and its size do not fit together.
    """
    with safe_files.opened(path) as fd:
        try:
            size = os.fstat(fd).st_size
            header = _header(fd, size)
            start = PREFIX + len(header)
            entries = _unique(_entries(header, start))
            _check_ranges(entries, start, size)
        except ValueError as error:
            message = f"{path} is no safetensors file that can be trusted: {error}; get the file again"
            raise CheckpointError(message) from error
    return entries


def _header(fd: int, size: int) -> bytearray:
    if size < PREFIX:
        raise ValueError(f"it has {size} bytes, and the length of its header alone takes {PREFIX}")
    prefix = bytearray(PREFIX)
    safe_files.read_into(fd, memoryview(prefix), 0)
    length = int.from_bytes(prefix, "little")
    if length > size - PREFIX:
        raise ValueError(f"its header is to have {length:,} bytes, the whole file has {size:,}")
    if length > MAX_BYTES:
        raise ValueError(f"its header has {length:,} bytes, more than {MAX_BYTES:,}")
    header = bytearray(length)
    safe_files.read_into(fd, memoryview(header), PREFIX)
    return header


def _entries(header: bytearray, start: int) -> Iterator[tuple[str, Entry]]:
    """(name, Entry) in the order of the header; `start` is where in the file its data begins."""
    at, separator = 1, b"," if header.startswith(b"{") else b""
    if re.match(rb"\{\s*+\}", header):  # no tensor at all
        at, separator = header.index(b"}") + 1, b"}"
    while separator == b",":
        name, at = _name(header, at)
        limit = MAX_METADATA_BYTES if name == METADATA else MAX_ENTRY_BYTES
        value = _FLAT_OBJECT.match(header, at, at + limit)
        if not value:
            raise ValueError(f"tensor {name!r}: its entry is no flat JSON object of at most {limit:,} bytes")
        at, separator = value.end(), value[2]
        if name == METADATA:
            _check_metadata(value[1])
        else:
            yield name, _entry(name, value[1], start)
    if separator != b"}" or re.compile(rb" *+").match(header, at).end() != len(header):
        raise ValueError(f"byte {PREFIX + at} of it does not go on as the JSON of a header")


def _name(header: bytearray, at: int) -> tuple[str, int]:
    """The key of the entry that begins at `at`, and where its value begins."""
    found = _NAME.match(header, at, at + 6 * MAX_NAME_BYTES + 100)  # \u1234 may stand for a character
    if not found:
        raise ValueError(f"byte {PREFIX + at} of it begins no name of at most {MAX_NAME_BYTES} bytes")
    name = json.loads(found[1].decode())
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        raise ValueError(f"the name {name!r} has not 1 to {MAX_NAME_BYTES} bytes")
    return name, found.end()


def _check_metadata(text: bytes) -> None:
    if not all(isinstance(value, str) for value in json_file.parse(text).values()):
        raise ValueError(f"{METADATA} holds more than texts")


def _entry(name: str, text: bytes, start: int) -> Entry:
    try:
        dtype, shape, begin, end = _fields(text)
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
        if len(shape) > MAX_DIMS:
            raise ValueError(f"it has {len(shape)} dims, more than {MAX_DIMS}")
        if math.prod(max(size, 1) for size in shape) * DTYPES[dtype].itemsize > MAX_SIZE:
            raise ValueError(f"{dtype} {shape} is more than memory can address")
        if (needed := math.prod(shape) * DTYPES[dtype].itemsize) != end - begin:
            raise ValueError(f"{dtype} {shape} takes {needed:,} bytes, data_offsets give it {end - begin:,}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"tensor {name!r}: {error}") from error
    return Entry(DTYPES[dtype], tuple(shape), start + begin, start + end)


def _fields(text: bytes) -> tuple[str, list[int], int, int]:
    """dtype, shape, begin and end in the entry of a tensor; of no other types than these."""
    pairs = _pairs_of(text.decode())
    fields = dict(pairs)
    if len(pairs) != 3 or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{text[:100]!r} says not dtype, shape and data_offsets, each once")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(
            f"{text[:100]!r} has a dtype that is no text, or a shape or offsets that are no list"
        )
    if len(offsets) != 2:
        raise ValueError(f"data_offsets {offsets} are not a begin and an end")
    if not all(type(x) is int and 0 <= x <= MAX_SIZE for x in shape + offsets):
        raise ValueError(
            f"its shape and data_offsets {text[:100]!r} are not whole numbers from 0 to 2**63 - 1"
        )
    return dtype, shape, *offsets


def _unique(entries: Iterator[tuple[str, Entry]]) -> dict[str, Entry]:
    found = {}
    for name, entry in entries:
        if name in found:
            raise ValueError(f"tensor {name!r} is there twice")
        if len(found) == MAX_TENSORS:
            raise ValueError(f"it holds more than {MAX_TENSORS:,} tensors")
        found[name] = entry
    return found


def _check_ranges(entries: dict[str, Entry], start: int, size: int) -> None:
    """Raise ValueError unless the tensors fill the file from `start` to its end without holes or overlap."""
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            wrong = "overlaps the one before it" if entry.begin < at else "leaves a hole before it"
            raise ValueError(f"tensor {name!r}: it begins at byte {entry.begin:,}, not {at:,}: it {wrong}")
        at = entry.end
        if at > size:
            raise ValueError(f"tensor {name!r}: it ends at byte {at:,}, the file at {size:,}: it was cut")
    if at != size:
        raise ValueError(f"{size - at:,} bytes follow its last tensor")
