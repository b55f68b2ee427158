"""Files that survive a power cut: synced before they get their name, in a directory that is synced after."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from moejax.errors import StorageError


def sync(path: Path) -> None:
    """Wait until the disk has the content of a file, or the names in a directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directories(root: Path) -> None:
    """Sync the names in `root` and in every directory below it."""
    for directory, _, _ in os.walk(root):
        sync(Path(directory))


def write_file(path: Path, data: bytes) -> None:
    """Create or replace `path`: a reader sees the old or the new content, never a part."""
    temp = path.with_name(f".{path.name}.new")
    temp.write_bytes(data)
    sync(temp)
    os.replace(temp, path)
    sync(path.parent)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Where to write a synced file or directory that becomes `path` at the end of `with`, or goes away.

    Raises:
      StorageError: the disk is full or failed.
    """
    temp = path.with_name(f".{path.name}.new")
    try:
        _remove(temp)
        temp.parent.mkdir(parents=True, exist_ok=True)
        yield temp
        temp.rename(path)
        sync(path.parent)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error
    finally:
        _remove(temp)


def _remove(path: Path) -> None:
    """Take away a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def require_room(directory: Path, num_bytes: int) -> None:
    """Raise StorageError unless the disk of `directory` has so much room."""
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise StorageError(f"the disk of {directory} has {free:,} bytes free, {num_bytes:,} are needed")
