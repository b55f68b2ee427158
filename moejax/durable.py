"""Files that survive a power cut: synced before they get their name, in a directory that is synced after."""

import os
from pathlib import Path


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
