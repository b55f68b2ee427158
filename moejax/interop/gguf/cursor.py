"""Reading forward through the head of a file that nobody vouches for."""

import os
import struct
from collections.abc import Sequence
from functools import cached_property
from typing import BinaryIO

from moejax.errors import CheckpointError

MAX_HEADER = 100 << 20  # bytes
MAX_STRING = 64 << 20  # bytes


def damaged(path, at: int, reason: str) -> CheckpointError:
    """The one error for files that are not what they say."""
    return CheckpointError(f"{path}: at byte {at}: {reason}; the file is damaged, fetch or convert it again")


class Cursor:
    """Takes bytes in order; a count is held against what the file has left before memory is taken for it."""

    def __init__(self, file: BinaryIO, path: str):
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0
        self._file = file

    def damaged(self, reason: str, at: int | None = None) -> CheckpointError:
        return damaged(self.path, self.at if at is None else at, reason)

    def need(self, count: int, size: int, what: str) -> None:
        """Raise CheckpointError unless `count` things of at least `size` bytes can follow."""
        left = self.size - self.at
        if count * size > left:
            raise self.damaged(f"{what} needs {count * size} bytes or more, the file has {left} left")
        if self.at + count * size > MAX_HEADER:
            raise self.damaged(f"{what} ends past the {MAX_HEADER} bytes that a header may have")

    def take(self, count: int, what: str) -> bytes:
        self.need(count, 1, what)
        raw = self._file.read(count)
        if len(raw) != count:
            raise self.damaged(f"{what} was cut off while the file was read")
        self.at += count
        return raw

    def number(self, form: str, what: str):
        """One number; `form` as in the module struct."""
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def text(self, what: str, most: int = MAX_STRING) -> str:
        start = self.at
        return _decoded(self.take(self._length(what, most), what), self.path, start + 8, what)

    def texts(self, count: int, what: str) -> "Texts":
        """`count` strings; they are walked over now and decoded when somebody asks."""
        self.need(count, 8, what)
        start = self.at
        for _ in range(count):
            self.take(self._length(what, MAX_STRING), what)
        stop, self.at = self.at, start
        self._file.seek(start)
        return Texts(self.take(stop - start, what), count, self.path, start)

    def _length(self, what: str, most: int) -> int:
        length = self.number("<Q", what)
        if length > most:
            raise self.damaged(f"{what} has {length} bytes, {most} are allowed", self.at - 8)
        return length


class Texts(Sequence):
    """The strings of an array, such as the tokens of a vocabulary; decoded once, at the first use."""

    def __init__(self, raw: bytes, count: int, path: str, at: int):
        self._raw, self._count, self._path, self._at = raw, count, path, at

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
        return self._values[index]

    def __iter__(self):
        return iter(self._values)

    def __repr__(self) -> str:
        return f"Texts({self._count} strings)"

    @cached_property
    def _values(self) -> list[str]:
        values, at = [], 0
        for _ in range(self._count):
            (length,) = struct.unpack_from("<Q", self._raw, at)
            piece = self._raw[at + 8 : at + 8 + length]
            values.append(_decoded(piece, self._path, self._at + at + 8, "a string of an array"))
            at += 8 + length
        return values


def _decoded(raw: bytes, path: str, at: int, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, at + error.start, f"{what} is not UTF-8") from None
