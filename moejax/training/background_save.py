"""One save of one step, in a thread of its own, from the copy to the host to the final rename.

Every process of the run does the same: it writes its shards, hashes and syncs its files, and waits for
the others; process 0 makes the directory, collects the hashes and commits. A process that fails goes on
to the next barrier all the same, so that no other waits for it; what it did not deliver is then missed.
"""

import dataclasses
import errno
import json
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moejax.config import CheckpointConfig
from moejax.training import faults, leaves, manifest
from moejax.training.array_files import ArrayFiles
from moejax.training.manifest import FileEntry, Manifest
from moejax.training.peers import Peers
from moejax.training.step_store import StepStore

ARRAYS = "arrays"  # the arrays' directory within a step
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("RESOURCE_EXHAUSTED", "No space left", "File too large", "Disk quota")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Workshop:
    """What all saves of a run share."""

    store: StepStore
    arrays: ArrayFiles
    peers: Peers
    cfg: CheckpointConfig


def is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or one that led to it, says that no more can be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(words in str(error) for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


class BackgroundSave:
    """A save that has begun; `copied` is set when the arrays may change, `done` when all is over.

    Args:
        shop: the parts that do the work.
        named: the arrays by name.
        meta: goes into the manifest as it is.
        count: how-manieth save of this process this is, from 1.
    """

    def __init__(self, shop: Workshop, step: int, named: dict[str, Any], meta: dict[str, Any], count: int):
        self.step = step
        self.error: Exception | None = None
        self.failure = ""  # what the user is told of the error, in one line
        self.copied = threading.Event()
        self.done = threading.Event()
        self._shop = shop
        self._count = count
        self._peer_lost = False
        self._named = named
        self._num_bytes = leaves.num_bytes(named)
        self._head = Manifest(step, (), leaves.describe(named), meta, manifest.library_versions())
        self._temp = shop.store.temp_path(step)
        threading.Thread(target=self._run, name=f"save-{step}").start()

    def _run(self) -> None:
        try:
            for action in (self._make_temp, self._write_arrays, self._seal, self._commit):
                self._together(action)
            if self.error is None and not self._shop.store.path(self.step).is_dir():
                self.error = OSError("process 0 could not commit it")
            if self.error is not None:
                self._give_up()
        finally:  # whatever happened, the trainer must not wait for it
            self._named = None
            self.copied.set()
            self.done.set()

    def _together(self, action: Callable[[], None]) -> None:
        """Do `action`, unless something failed before, and wait until all processes are as far."""
        if self._peer_lost:
            return
        try:
            if self.error is None:
                action()
        except Exception as error:
            self.error = error
        try:
            self._shop.peers.barrier(f"save/{self._count}/{action.__name__}")
        except Exception as error:
            self._peer_lost = True
            self.error = self.error or error

    def _make_temp(self) -> None:
        if self._shop.peers.is_first:
            self._shop.store.new_temp(self.step)
            (self._temp / ARRAYS).mkdir()

    def _write_arrays(self) -> None:
        futures = self._shop.arrays.write(self._temp / ARRAYS, self._named)
        self._named = None
        self.copied.set()
        errors = [error for error in map(_failure, futures) if error]  # all must end before the temp may go
        if errors:
            raise errors[0]
        faults.reach("arrays_written")
        faults.fail_save(self._count)

    def _seal(self) -> None:
        peers = self._shop.peers
        if peers.is_first:
            self._shop.arrays.finalize(self._temp / ARRAYS)
            self._head = dataclasses.replace(self._head, files=manifest.seal(self._temp))
        else:
            self._letter(peers.index).write_text(json.dumps(manifest.seal(self._temp, peers.index)))

    def _letter(self, process: int) -> Path:
        """In which file `process` tells process 0 what it sealed."""
        return self._temp / f"sealed.process_{process}"

    def _commit(self) -> None:
        shop = self._shop
        if not shop.peers.is_first:
            return
        files = list(self._head.files)
        for process in range(1, shop.peers.count):
            letter = self._letter(process)
            if not letter.exists():
                raise OSError(f"process {process} did not write its part")
            files += [FileEntry(*entry) for entry in json.loads(letter.read_text())]
            letter.unlink()
        shop.store.commit(self._temp, dataclasses.replace(self._head, files=tuple(sorted(files))))
        try:
            shop.store.prune(shop.cfg)
        except OSError as error:
            log.warning("step %d is saved, but older checkpoints could not be deleted: %s", self.step, error)

    def _give_up(self) -> None:
        if self._shop.peers.is_first:
            self._shop.store.discard(self._temp)
        reason = " ".join(str(self.error).split())[:300] or type(self.error).__name__
        if is_disk_full(self.error):
            root = self._shop.store.root
            free = shutil.disk_usage(root).free
            reason = f"the disk of {root} is full, {self._num_bytes:,} bytes needed, {free:,} free"
        self.failure = f"checkpoint of step {self.step} was not saved: {reason}"
        log.error("%s", self.failure)


def _failure(future: Any) -> Exception | None:
    try:
        future.result()
    except Exception as error:
        return error
    return None
