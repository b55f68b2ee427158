"""Which files a corpus is made of, in an order that does not depend on the machine."""

import dataclasses
import glob
import gzip
import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Callable
from typing import BinaryIO

from moejax.errors import DataError

# Parts of the standard library that are not ordinary code: tests, generated fixes, and what pip put there.
NOT_LIBRARY = ("idle_test", "lib2to3", "site-packages", "dist-packages", "__pycache__")


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of the corpus."""

    path: pathlib.Path
    name: str  # as shown to the user, "/" between parts

    @property
    def is_jsonl(self) -> bool:
        """One JSON object per line; any other file is one document of plain text."""
        return self.name.removesuffix(".gz").endswith(".jsonl")

    def open(self) -> BinaryIO:
        """The uncompressed bytes."""
        return gzip.open(self.path, "rb") if self.name.endswith(".gz") else open(self.path, "rb")

    def sha256(self) -> str:
        """Hash of the bytes on disk, or "unreadable"; reading the records will then say why."""
        try:
            with open(self.path, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            return "unreadable"


def find_files(source: tuple[str, ...], option: str = "data.source[{}]") -> tuple[SourceFile, ...]:
    """The files of `data.source`, in its order; globs and directories are sorted, no file is taken twice.

    Args:
      source: files, globs (`**` recurses) and directories (taken recursively without hidden entries);
        empty means the source code of the running interpreter's standard library.
      option: what the user gave an entry as, with a place for its number.

    Raises:
      DataError: an entry matches nothing.
    """
    if not source:
        return _standard_library()
    found: dict[pathlib.Path, SourceFile] = {}
    for i, entry in enumerate(source):
        files = _expand(os.path.expanduser(entry))
        if not files:
            raise DataError(
                f"{option.format(i)}={entry!r} matches no file (looked from {os.getcwd()}). Give an existing "
                "file, directory or glob, or leave it out for text that the machine has"
            )
        for file in files:
            found.setdefault(file.path.resolve(), file)
    return tuple(found.values())


def _expand(entry: str) -> list[SourceFile]:
    if os.path.isdir(entry):
        return _directory(pathlib.Path(entry))
    matches = [entry] if os.path.exists(entry) else sorted(glob.glob(entry, recursive=True))
    files = []
    for path in map(pathlib.Path, matches):
        if path.is_file():  # a pipe cannot be read twice
            files.append(SourceFile(path, path.as_posix()))
        elif path.is_dir() and "**" not in entry:
            files += _directory(path)
    return files


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def _is_library(name: str) -> bool:
    return _is_visible(name) and not name.startswith("test") and name not in NOT_LIBRARY


def _directory(root: pathlib.Path, keep: Callable[[str], bool] = _is_visible) -> list[SourceFile]:
    """The files below `root`, sorted; `keep` looks at the name of each folder and file."""
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = filter(keep, subfolders)
        paths = [pathlib.Path(folder, name) for name in filter(keep, names)]
        files += [SourceFile(path, path.as_posix()) for path in paths if path.is_file()]
    return sorted(files, key=lambda file: file.name)


def _standard_library() -> tuple[SourceFile, ...]:
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    files = tuple(
        SourceFile(file.path, "stdlib/" + file.path.relative_to(root).as_posix())
        for file in _directory(root, _is_library)
        if file.path.suffix == ".py" and file.path.stat().st_size > 0
    )
    if not files:
        raise DataError(
            f"data.source is empty, and this Python has no source of its standard library in {root}; "
            "name your own text with --config.data.source=PATH"
        )
    return files
