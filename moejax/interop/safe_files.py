"""Files that strangers made: which of a directory's are really its own, and how they are opened and read."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moejax.errors import CheckpointError

MAX_NAME_BYTES = 255  # of a file
_MOST_PER_READ = 1 << 30  # Linux reads at most 2 GiB at once


def inside(root: Path, name: str) -> Path:
    """The file `name` of the directory `root`; a link may lead to another file of it, and nowhere else.

    The hub's cache keeps content once and links to it: below `models--*/snapshots/*` a link may lead
    anywhere in its `models--*`.

    Raises:
      CheckpointError: `name` is no plain file name, or a link that leaves the directory.
    """
    plain = name not in ("", ".", "..") and not re.search(r"[/\\\x00]", name)
    if not plain or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise CheckpointError(
            f"{root}: {name[:MAX_NAME_BYTES]!r} is no plain name; the files of a model lie in one directory"
        )
    home, target = Path(os.path.realpath(root)), Path(os.path.realpath(root / name))
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        home = home.parent.parent
    if not target.is_relative_to(home):
        raise CheckpointError(
            f"{root / name} is a link to {target}, outside of {home}; copy the file into the directory"
        )
    return target


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of the regular file `path`, for reading.

    Raises:
      CheckpointError: it is missing, unreadable, or no regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe must not wait for its other end
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CheckpointError(f"{path} is no regular file; replace it by one")
        yield fd
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


def read_into(fd: int, memory: memoryview, offset: int) -> None:
    """Fill `memory` with the bytes of a file from `offset` on.

    Raises:
      OSError: the file ends before.
    """
    done = 0
    while done < len(memory):
        count = os.preadv(fd, [memory[done : done + _MOST_PER_READ]], offset + done)
        if not count:
            raise OSError(0, f"it ends at byte {offset + done}, {len(memory) - done} bytes before it should")
        done += count


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file of at most `max_bytes`.

    Raises:
      CheckpointError: it is larger, missing, unreadable, or no regular file.
    """
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        if size > max_bytes:
            raise CheckpointError(f"{path} has {size:,} bytes; a file of its kind has at most {max_bytes:,}")
        data = bytearray(size)
        read_into(fd, memoryview(data), 0)
    return bytes(data)
