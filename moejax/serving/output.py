"""Where answers go: standard output, or a file that gets its name when it is whole."""

import collections
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from moejax import durable
from moejax.config import require
from moejax.errors import StorageError
from moejax.serving.journal import Journal


class Output(Protocol):
    """Takes answers as they are finished and gives them in the order of the requests."""

    statuses: Mapping[int, int]  # of the answers so far, by number of the request's line

    def begin(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Say what the job is; returns what the process said that began it."""

    def expect(self, number: int) -> None:
        """The request of this line is next."""

    def add(self, number: int, status: int, answer: str) -> None: ...


class StandardOutput:
    """Lines for whoever reads standard output; each is printed when those before it are."""

    def __init__(self):
        self.statuses: dict[int, int] = {}
        self._expected: collections.deque[int] = collections.deque()
        self._waiting: dict[int, str] = {}

    def __enter__(self) -> "StandardOutput":
        return self

    def begin(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return dict(job)

    def expect(self, number: int) -> None:
        self._expected.append(number)

    def add(self, number: int, status: int, answer: str) -> None:
        """Print what is ready."""
        self.statuses[number], self._waiting[number] = status, answer
        while self._expected and self._expected[0] in self._waiting:
            print(self._waiting.pop(self._expected.popleft()))
        sys.stdout.flush()

    def __exit__(self, *_) -> None:
        pass


class OutputFile:
    """Answers for `path`, kept in the journal `path`.part until all are there.

    Leaving the `with` block without an error writes the file, whole or not at all; after an error the journal
    stays.

    Args:
      path: of the file.
      resume: go on with the journal that is there.

    Raises:
      UsageError: at once, if there can be no such file; on entry as of `Journal`, as are
      RetryError: and
      StorageError:
    """

    def __init__(self, path: str, resume: bool = False):
        self.path, self._resume = Path(path), resume
        check_place("output", path)
        self.part = self.path.with_name(f"{self.path.name}.part")

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing to resume, because the file has its name."""
        return self._resume and self.path.exists() and not self.part.exists()

    @property
    def statuses(self) -> Mapping[int, int]:
        return self._journal.statuses

    def __enter__(self) -> "OutputFile":
        self._journal = Journal(self.part, self._resume)
        return self

    def begin(self, job: Mapping[str, Any]) -> dict[str, Any]:
        self._journal.begin(job)
        return dict(self._journal.job)

    def expect(self, number: int) -> None:
        pass

    def add(self, number: int, status: int, answer: str) -> None:
        self._journal.add(number, status, answer)

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                self._journal.sync()
                self._finish()
            elif not self.statuses:
                self.part.unlink(missing_ok=True)  # nothing would be lost
            elif issubclass(kind, KeyboardInterrupt):
                count = len(self.statuses)
                print(f"{self.part} keeps {count} answers; --resume goes on", file=sys.stderr)
        finally:
            self._journal.close()

    def _finish(self) -> None:
        temp = self.path.with_name(f".{self.path.name}.new")
        try:
            with open(temp, "wb") as file:
                file.writelines(self._journal.answers())
            durable.sync(temp)
            os.replace(temp, self.path)
            durable.sync(self.path.parent)
            self.part.unlink()
        except OSError as error:
            temp.unlink(missing_ok=True)
            raise StorageError(
                f"{self.path} cannot be written: {error.strerror}; all answers are in {self.part}. Make room "
                "and run the same with --resume"
            ) from error


def open_output(path: str, resume: bool = False) -> StandardOutput | OutputFile:
    """The output of that name; "-" is standard output."""
    require(path != "-" or not resume, "--resume goes on with a file; give --output=FILE")
    return StandardOutput() if path == "-" else OutputFile(path, resume)


def check_place(flag: str, path: str) -> None:
    """Refuse a place where no file can be, before the work.

    Raises:
      UsageError: there is no such directory, or `path` is one itself.
    """
    folder = Path(path).parent
    require(folder.is_dir(), f"--{flag}={path}: there is no directory {str(folder)!r}; make it first")
    require(not Path(path).is_dir(), f"--{flag}={path} is a directory; name a file in it")


def detach_standard_output() -> None:
    """Send what Python would still write at exit nowhere, because its reader went away."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
