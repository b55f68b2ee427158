"""Tensors out to a GGUF file, a part of one of them in memory at a time."""

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moejax.interop.gguf import header, quants

CODES = {np.dtype(form): code for code, form in header.SCALARS.items()}


class Outgoing(NamedTuple):
    """A tensor of the file."""

    name: str
    shape: tuple[int, ...]  # slowest dim first
    kind: quants.Kind
    parts: Callable[[], Iterator[np.ndarray]]  # its rows of numbers, some at a time, in order

    @property
    def size(self) -> int:
        """Bytes in the file."""
        rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        return rows * quants.row_bytes(self.kind, self.shape[-1])


def write_gguf(
    path: Path,
    metadata: Mapping[str, object],
    tensors: Sequence[Outgoing],
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write a synced GGUF file of version 3.

    Args:
      metadata: bool, int, float (kept as float32), str, lists of str, numpy arrays.
      progress: is told the name of every tensor that is written.

    Raises:
      OSError: the disk is full or failed; the caller takes the file away.
    """
    with open(path, "wb") as file:
        file.write(_head(metadata, tensors))
        for tensor in tensors:
            _pad(file)
            start = file.tell()
            for part in tensor.parts():
                file.write(memoryview(quants.encode(part, tensor.kind)).cast("B"))
            written = file.tell() - start
            assert written == tensor.size, f"{tensor.name}: {written} bytes, {tensor.size} were promised"
            if progress:
                progress(tensor.name)
        _pad(file)
        file.flush()
        os.fsync(file.fileno())


def _head(metadata: Mapping[str, object], tensors: Iterable[Outgoing]) -> bytes:
    tensors = list(tensors)
    pieces = [b"GGUF", struct.pack("<IQQ", header.VERSIONS[-1], len(tensors), len(metadata))]
    pieces += [_text(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1])
        pieces.append(_text(tensor.name) + dims + struct.pack("<IQ", tensor.kind, offset))
        offset += tensor.size + -tensor.size % header.DEFAULT_ALIGNMENT
    return b"".join(pieces)


def _value(value: object) -> bytes:
    """The type of a metadata value, and the value."""
    if isinstance(value, bool):
        return struct.pack("<I?", header.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", CODES[np.dtype(np.uint32)], value)
    if isinstance(value, float):
        return struct.pack("<If", CODES[np.dtype(np.float32)], value)
    if isinstance(value, str):
        return struct.pack("<I", header.STRING) + _text(value)
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", header.ARRAY, CODES[value.dtype], len(value)) + value.tobytes()
    return struct.pack("<IIQ", header.ARRAY, header.STRING, len(value)) + b"".join(map(_text, value))


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _pad(file) -> None:
    file.write(bytes(-file.tell() % header.DEFAULT_ALIGNMENT))
