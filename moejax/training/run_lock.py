"""One writer per run directory, even across crashes, reboots and reused process ids.

The lock is a file lock that the system releases when its holder dies; a small JSON beside it says who
holds it. Take it before jax is imported: a second trainer should be refused in a blink.
"""

import dataclasses
import json
import os
import platform
from pathlib import Path

import filelock

from moejax import durable
from moejax.errors import RetryError, StorageError

LOCK = "run.lock"
OWNER = "run.owner.json"


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process, named so that no other process, now or after a reboot, is mistaken for it."""

    host: str
    pid: int
    boot_id: str  # changes when the machine restarts; empty where the system has none
    start_time: str  # of the process, in clock ticks since boot; empty where the system has none

    @classmethod
    def myself(cls) -> "Owner":
        """This process."""
        return cls(platform.node(), os.getpid(), _boot_id(), _start_time(os.getpid()))

    @classmethod
    def read(cls, path: Path) -> "Owner | None":
        """What `path` says, or None if it says nothing that can be understood."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def lives(self) -> bool:
        """Whether this is a running process of this machine."""
        if (self.host, self.boot_id) != (platform.node(), _boot_id()):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # it lives, under another user
            pass
        return _start_time(self.pid) == self.start_time


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # from field 3 on; the name in parentheses may contain anything
    return "" if fields[0] in "ZX" else fields[19]  # a zombie is dead


class RunLock:
    """Holds the run in `directory` between `with` and its end.

    Raises:
        RetryError: on entry, if another process holds it; names that process.
        StorageError: on entry, if the directory cannot be written.
    """

    def __init__(self, directory: str | os.PathLike):
        self._directory = Path(directory)
        self._owner_path = self._directory / OWNER
        self._lock = filelock.FileLock(self._directory / LOCK, blocking=False, thread_local=False)

    def __enter__(self) -> "RunLock":
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._own()
        except filelock.Timeout:
            self._refuse()
        except OSError as error:
            raise StorageError(f"{self._directory} cannot be locked for this run: {error}") from error
        return self

    def _own(self) -> None:
        """Write down who holds the lock, unless another process lives whose lock file was deleted."""
        owner, myself = Owner.read(self._owner_path), Owner.myself()
        if owner and owner.lives() and owner != myself:
            self._lock.release()
            self._refuse()
        durable.write_file(self._owner_path, json.dumps(dataclasses.asdict(myself)).encode())

    def __exit__(self, *_) -> None:
        self._owner_path.unlink(missing_ok=True)
        self._lock.release()

    def _refuse(self) -> None:
        owner = Owner.read(self._owner_path)
        who = f"process {owner.pid} on {owner.host}" if owner else "another process"
        raise RetryError(
            f"{self._directory} is in use by {who}; wait until it ends, or choose another directory"
        )
