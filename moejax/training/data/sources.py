"""Which files a corpus is made of, in an order that does not depend on the machine."""

import dataclasses
import glob
import gzip
import hashlib
import os
import pathlib
import sysconfig
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


def find_files(source: tuple[str, ...]) -> tuple[SourceFile, ...]:
    """The files of `data.source`, in its order; globs and directories are sorted, no file is taken twice.

    Args:
      source: files, globs (`**` recurses) and directories (taken recursively without hidden entries);
        empty means the source code of the running interpreter's standard library.

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
                f"data.source[{i}]={entry!r} matches no file (looked from {os.getcwd()}). Give an existing file, "
                "directory or glob, or leave data.source empty for the standard library's source"
            )
        for file in files:
            found.setdefault(file.path.resolve(), file)
    return tuple(found.values())


def _expand(entry: str) -> list[SourceFile]:
    if os.path.isdir(entry):
        return _directory(pathlib.Path(entry))
    matches = [entry] if os.path.exists(entry) else sorted(glob.glob(entry, recursive=True))
    files = []
    for match in matches:
        path = pathlib.Path(match)
        files += _directory(path) if path.is_dir() and "**" not in entry else [SourceFile(path, path.as_posix())]
    return [file for file in files if not file.path.is_dir()]


def _directory(root: pathlib.Path) -> list[SourceFile]:
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths = [pathlib.Path(folder, name) for name in names if not name.startswith(".")]
        files += [SourceFile(path, path.as_posix()) for path in paths if path.is_file()]
    return sorted(files, key=lambda file: file.name)


def _standard_library() -> tuple[SourceFile, ...]:
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    files = []
    for file in _directory(root):
        parts = file.path.relative_to(root).parts
        is_test = any(part.startswith("test") or part in NOT_LIBRARY for part in parts)
        if file.path.suffix == ".py" and not is_test and file.path.stat().st_size > 0:
            files.append(SourceFile(file.path, "/".join(("stdlib", *parts))))
    if not files:
        raise DataError(
            f"data.source is empty, and this Python has no source of its standard library in {root}; "
            "name your own text with --config.data.source=PATH"
        )
    return tuple(files)
