"""Files that survive a power cut: synced before they get their name, in a directory that is synced after."""

import os
from pathlib import Path

from moejax.training import faults


def sync_file(fd: int) -> None:
    """Wait until the disk has the file behind `fd`."""
    os.fsync(fd)


def sync_directory(directory: Path) -> None:
    """Wait until the disk has the names in `directory`."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directories(root: Path) -> None:
    """Sync `root` and every directory below it."""
    for directory, _, _ in os.walk(root):
        sync_directory(Path(directory))


def write_file(path: Path, data: bytes) -> None:
    """Create or replace `path`: a reader sees the old or the new content, never a part."""
    temp = path.with_name(f".{path.name}.new")
    with open(temp, "wb") as file:
        file.write(data)
        file.flush()
        faults.reach("manifest_written")
        sync_file(file.fileno())
    os.replace(temp, path)
    sync_directory(path.parent)
