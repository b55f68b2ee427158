"""Answers on disk while a job runs, so that a killed one goes on where it stopped.

Each line has a checksum, the number of the request's line, the status of its answer and the answer, in the
order in which answers were finished. The first line says what the job is:

    5a0c1f33 0 0 {"moejax": "0.1.0", "input": {...}, "model": {...}, "settings": {...}}
    91d2be07 3 200 {"id": ...}

What a kill or a power cut left of the last line fails its checksum and is cut off.
"""

import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moejax.config import require
from moejax.errors import DataError, RetryError, StorageError

SYNC_SECONDS = 1.0  # of answers that a power cut may cost; a killed process loses none


class Journal:
    """Answers kept at `path`; one process at a time.

    Args:
      path: of the journal.
      resume: go on with what is there; else there must be no answers.

    Raises:
      RetryError: another process writes it.
      UsageError: it has answers that are not to be resumed.
      StorageError: the disk is full or failed.
    """

    def __init__(self, path: Path, resume: bool):
        self.path = path
        self.statuses: dict[int, int] = {}  # of the answers, by number of the line
        self.job: dict[str, Any] | None = None  # what the first line says
        self._offsets: dict[int, int] = {}
        self._synced = time.monotonic()
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error
        try:
            self._lock()
            self._read()
            require(
                resume or not self.statuses,
                f"{path} has {len(self.statuses)} answers of a job that was stopped; --resume goes on with "
                "it, or remove the file to start anew",
            )
        except BaseException:
            self._file.close()
            raise

    def begin(self, job: Mapping[str, Any]) -> None:
        """Say what the job is; `created` in it is not compared with what an earlier process said.

        Raises:
          DataError: the answers that are there are another job's.
        """
        if self.job is None or not self.statuses:
            self._truncate(0)
            self.job = dict(job)
            self._append(0, 0, json.dumps(job))
            return
        changes = [
            f"{name} was {old!r}, is now {new!r}"
            for name, old, new in _differences(self.job, job)
            if name != "created"
        ]
        if changes:
            raise DataError(
                f"{self.path} is of another job: {'; '.join(changes)}. Give what it began with, or remove "
                "the file to start anew"
            )

    def add(self, number: int, status: int, answer: str) -> None:
        """Keep one answer; a killed process has kept it when this returns.

        Raises:
          StorageError: the disk is full or failed; the answers before are kept.
        """
        self._offsets[number] = self._append(number, status, answer)
        self.statuses[number] = status
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Wait until the disk has all answers."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        self._synced = time.monotonic()

    def answers(self) -> Iterator[bytes]:
        """Every answer as a whole line, in the order of the requests."""
        with open(self.path, "rb") as file:
            for _, offset in sorted(self._offsets.items()):
                file.seek(offset)
                yield file.readline().split(b" ", 3)[3]

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RetryError(f"{self.path} is being written by another process; wait until it ends") from None
        except OSError as error:
            raise StorageError(f"{self.path} cannot be locked: {error.strerror}") from error
        if not os.fstat(self._file.fileno()).st_nlink:
            raise RetryError(f"{self.path} was just finished by another process; look at its output")

    def _read(self) -> None:
        """Find the answers that are whole, and cut off what is not."""
        self._file.seek(0)
        end = 0
        with open(self.path, "rb") as file:
            for line in file:
                record = _parse(line)
                if record is None or (record[0] == 0) != (end == 0):
                    break
                number, status, answer = record
                if end == 0:
                    self.job = json.loads(answer)
                elif number not in self.statuses:
                    self.statuses[number], self._offsets[number] = status, end
                end += len(line)
        if end < os.fstat(self._file.fileno()).st_size:
            self._truncate(end)

    def _append(self, number: int, status: int, text: str) -> int:
        """Write one line, all of it or nothing; where it begins."""
        content = f"{number} {status} {text}\n".encode("ascii")
        data = memoryview(b"%08x %s" % (zlib.crc32(content), content))
        begin = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._truncate(begin)
            raise self._failed(error) from error
        return begin

    def _truncate(self, size: int) -> None:
        try:
            self._file.truncate(size)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self.path} cannot be written: {error.strerror}; it keeps the {len(self.statuses)} answers so "
            "far. Make room and run the same with --resume"
        )


def _parse(line: bytes) -> tuple[int, int, bytes] | None:
    """(number, status, answer) of a line that is whole, else None."""
    checksum, _, content = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(content) or not content.endswith(b"\n"):
        return None
    number, status, answer = content.split(b" ", 2)
    return int(number), int(status), answer


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, old value, new value) of what differs in two nested records."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, old, new
