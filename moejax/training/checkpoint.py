"""Checkpoints: saved in the background, whole or not at all, verified before they are believed.

with Checkpointer(run_directory, cfg.checkpoint) as checkpoints:   # while holding the run lock
    restored = checkpoints.restore(abstract_state)                 # None: nothing was ever saved
    for step in ...:
        checkpoints.poll()                                         # hears of a failed save within a step
        checkpoints.save(step, state, {"data": data_state})        # returns when the arrays are copied
    checkpoints.wait_for(step)                                     # or learn that it was not saved
"""

import json
import logging
import os
from typing import Any, NamedTuple

import jax

from moejax.config import CheckpointConfig
from moejax.errors import CheckpointError, StorageError
from moejax.training import leaves, manifest
from moejax.training.array_files import ArrayFiles
from moejax.training.background_save import ARRAYS, BackgroundSave, Workshop, is_disk_full
from moejax.training.leaves import PyTree
from moejax.training.manifest import ManifestError
from moejax.training.peers import Peers, is_loss
from moejax.training.step_store import StepStore

log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A step as it was saved: arrays in the shardings asked for, and the meta data."""

    step: int
    state: PyTree
    meta: dict[str, Any]


class Checkpointer:
    """The checkpoints of one run.

    Args:
        run: the run's directory; steps live in its `checkpoints/`.
        cfg: when and what to keep, how hard to check.
        read_only: leave the directory as it is, and restore as much of a state as is asked for (for servers
            and tools beside a running trainer). A Checkpointer that is not read-only belongs to the holder of
            the run lock: it removes the leftovers of killed saves at once, and sets damaged steps aside.

    Every method is called by all processes of the run, in the same order. The end of `with` waits for a save
    that still runs, so that nothing is written once the run lock is gone.
    """

    def __init__(self, run: str | os.PathLike, cfg: CheckpointConfig, *, read_only: bool = False):
        self.num_failures = 0  # failed saves of this process
        self.failures_in_a_row = 0
        self._cfg = cfg
        self._read_only = read_only
        self._store = StepStore(run)
        self._peers = Peers()
        self._shop = Workshop(self._store, ArrayFiles(), self._peers, cfg)
        self._pending: BackgroundSave | None = None
        self._num_saves = 0
        self._current: int | None = None  # the step that this process saved or restored last
        if not read_only and self._peers.is_first:
            self._store.clean()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind, error, trace) -> None:
        waits_for_the_lost = error is not None and is_loss(error)
        if self._pending is not None and not waits_for_the_lost:
            self._pending.done.wait()

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return self._store.steps()

    def latest(self) -> int | None:
        """The newest committed step."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: PyTree, meta: dict[str, Any]) -> None:
        """Begin to save; returns when the arrays are copied, so that they may be donated.

        Waits for the save before it, if that still runs. Saving the step that was saved or restored
        last does nothing: the state is the same.

        Args:
            state: tree of jax.Array (also of keys) and numpy arrays.
            meta: JSON; `metric`, if given, is what `keep_best` minimises.

        Raises:
            StorageError: too many saves failed in a row, or one did and `on_disk_full` is "stop".
        """
        if self._read_only:
            raise RuntimeError("this Checkpointer is read-only")
        self.wait()
        if step == self._current and self._peers.from_first(step in self.steps()):
            return
        meta = json.loads(json.dumps(meta))  # a copy, as the caller's may change before it is written
        self._num_saves += 1
        self._pending = BackgroundSave(self._shop, step, leaves.named_leaves(state), meta, self._num_saves)
        self._pending.copied.wait()

    def poll(self) -> None:
        """Take note of a background save that ended; costs nothing, call it every step.

        Raises:
            StorageError: as in `save`.
        """
        if self._pending is not None and self._pending.done.is_set():
            self._settle()

    def wait(self) -> None:
        """Wait for the background save, if one runs.

        Raises:
            StorageError: as in `save`.
        """
        if self._pending is not None:
            self._pending.done.wait()
            self._settle()

    def wait_for(self, step: int) -> None:
        """Wait, and insist that `step` was saved: before the process ends.

        Raises:
            StorageError: it was not, or as in `save`.
        """
        self.wait()
        if not self._peers.from_first(step in self.steps()):
            raise StorageError(
                f"step {step} was not saved, the newest that was is step {self.latest()}; the log says why"
            )

    def _settle(self) -> None:
        ended, self._pending = self._pending, None
        if ended.error is None:
            self.failures_in_a_row = 0
            self._current = ended.step
            return
        self.num_failures += 1
        self.failures_in_a_row += 1
        if self._cfg.on_disk_full == "stop" and is_disk_full(ended.error):
            raise StorageError(ended.failure) from ended.error
        if self.failures_in_a_row >= self._cfg.max_failures:
            raise StorageError(
                f"{self.failures_in_a_row} saves in a row failed, train.checkpoint.max_failures="
                f"{self._cfg.max_failures}; the last: {ended.failure}"
            ) from ended.error

    def restore(self, abstract_state: PyTree, *, step: int | None = None) -> Restored | None:
        """Read the newest step that verifies, or the one asked for.

        A damaged step is named in the log and set aside, and the one before it is tried.

        Args:
            abstract_state: what to restore into: ShapeDtypeStructs (or arrays) with the shardings that
                the result shall have, on any mesh. Leaves without a sharding come as plain arrays.

        Returns:
            None if the run has no checkpoints at all.

        Raises:
            CheckpointError: every step is damaged, the step asked for is, or it fits another model.
        """
        self.wait()
        if step is not None:
            return self._restore_step(step, abstract_state)
        skipped = set()
        while (newest := self._newest(skipped)) is not None:
            problems = self._verify(newest)
            if not problems:
                return self._read(newest, abstract_state)
            skipped.add(newest)
            self._set_aside(newest, problems)
        self._refuse_fresh_start(skipped)
        return None

    def restore_meta(self, step: int | None = None) -> dict[str, Any]:
        """The meta data of a step, by default the newest, without opening its arrays.

        Raises:
            CheckpointError: there is no such step, or its manifest is damaged.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise CheckpointError(f"{self._store.root} has no checkpoints")
        return self._manifest(step).meta

    def _restore_step(self, step: int, abstract_state: PyTree) -> Restored:
        if not self._peers.from_first(step in self.steps()):
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{self._store.root} has no checkpoint of step {step}; there are: {there}")
        problems = self._verify(step)
        if problems:
            raise CheckpointError(f"checkpoint {self._store.path(step)} is damaged: {'; '.join(problems)}")
        return self._read(step, abstract_state)

    def _manifest(self, step: int) -> manifest.Manifest:
        try:
            return manifest.read(self._store.path(step))
        except ManifestError as error:
            raise CheckpointError(f"{self._store.path(step) / manifest.NAME} {error}") from error

    def _newest(self, skipped: set[int]) -> int | None:
        newest = max((step for step in self.steps() if step not in skipped), default=-1)
        newest = self._peers.from_first(newest)
        return None if newest < 0 else newest

    def _verify(self, step: int) -> list[str]:
        """Problems of a step; the processes share the hashing, and all know of it if one finds any."""
        part = slice(self._peers.index, None, self._peers.count)
        problems = [str(p) for p in manifest.verify(self._store.path(step), self._cfg.verify, part)]
        total = self._peers.total(len(problems))
        return problems or ([f"{total} files, see the log of another process"] if total else [])

    def _set_aside(self, step: int, problems: list[str]) -> None:
        place = self._store.path(step)
        if not self._read_only and self._peers.is_first:
            place = self._store.quarantine(step)
        for problem in problems:
            log.warning("checkpoint %d is damaged, trying the one before it: %s/%s", step, place, problem)

    def _refuse_fresh_start(self, skipped: set[int]) -> None:
        damaged = sorted(set(self._store.set_aside()) | {str(step) for step in skipped})
        if self._peers.from_first(len(damaged)):
            raise CheckpointError(
                f"no checkpoint in {self._store.root} can be trusted, all are damaged: {', '.join(damaged)}; "
                "to begin again from step 0, choose another directory or delete that one"
            )

    def _read(self, step: int, abstract_state: PyTree) -> Restored:
        content = self._manifest(step)
        wanted = leaves.named_leaves(abstract_state)
        saved = [tensor for tensor in content.tensors if tensor.name in wanted or not self._read_only]
        lines = leaves.diff(saved, leaves.describe(wanted))
        if lines:
            raise CheckpointError(
                f"checkpoint {self._store.path(step)} was saved by another model:\n  " + "\n  ".join(lines)
            )
        try:
            found = self._shop.arrays.read(self._store.path(step) / ARRAYS, wanted)
        except (ValueError, OSError, KeyError) as error:
            raise CheckpointError(
                f"checkpoint {self._store.path(step)} cannot be read, though it passed "
                f"train.checkpoint.verify={self._cfg.verify}: {error}"
            ) from error
        self._current = step
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), [found[name] for name in wanted])
        return Restored(step, state, content.meta)
