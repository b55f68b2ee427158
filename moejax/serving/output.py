"""Where answers go: standard output, or a file that gets its name when it is whole."""

import os
import sys
from pathlib import Path

from moejax import durable
from moejax.config import require
from moejax.errors import StorageError


class StandardOutput:
    """Lines for whoever reads standard output."""

    def __enter__(self) -> "StandardOutput":
        return self

    def write(self, lines: list[str]) -> None:
        """Print whole lines now."""
        print(*lines, sep="\n", flush=True)

    def __exit__(self, *_) -> None:
        pass


class OutputFile:
    """Lines for `path`, kept in `path`.part until all are there.

    Leaving the `with` block without an error gives the file its name; after an error the part stays.

    Raises:
      UsageError: at once, if there can be no such file.
      StorageError: the disk is full or failed.
    """

    def __init__(self, path: str):
        self._path = Path(path)
        folder = self._path.parent
        require(folder.is_dir(), f"--output={path}: there is no directory {str(folder)!r}; make it first")
        require(not self._path.is_dir(), f"--output={path} is a directory; name a file in it")
        self._part = self._path.with_name(f"{self._path.name}.part")

    def __enter__(self) -> "OutputFile":
        try:
            self._file = open(self._part, "wb", buffering=0)
        except OSError as error:
            raise StorageError(f"{self._part} cannot be written: {error.strerror}") from error
        return self

    def write(self, lines: list[str]) -> None:
        """Append whole lines, all or none of them."""
        data = "".join(f"{line}\n" for line in lines).encode()
        whole = self._file.tell()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file.truncate(whole)
            raise StorageError(
                f"{self._part} cannot be written: {error.strerror}; the answers so far are in it. "
                "Make room and start again"
            ) from error

    def __exit__(self, kind, *_) -> None:
        self._file.close()
        if kind is not None:
            return
        try:
            durable.sync(self._part)
            os.replace(self._part, self._path)
            durable.sync(self._path.parent)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}") from error


def open_output(path: str) -> StandardOutput | OutputFile:
    """The output of that name; "-" is standard output."""
    return StandardOutput() if path == "-" else OutputFile(path)


def detach_standard_output() -> None:
    """Send what Python would still write at exit nowhere, because its reader went away."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
