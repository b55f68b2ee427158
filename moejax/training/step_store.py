"""The directory of checkpoints: which steps there are, and how one comes and goes without a gap.

    <run>/checkpoints/120             a whole step, always: it got its name by a rename after all was on disk
                      120.corrupt-1   a step that failed verification, set aside for a post-mortem
                      .tmp-130        being written    |
                      .trash-90       being deleted    |  never read; removed by the next start
                      .old-120        being replaced   |

Steps are ordered by number alone: clocks, file times and listing order mean nothing here.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from moejax import durable
from moejax.config import CheckpointConfig
from moejax.training import faults, manifest
from moejax.training.manifest import Manifest, ManifestError, Problem

FOLDER = "checkpoints"  # below the run's directory

log = logging.getLogger(__name__)


class StepReport(NamedTuple):
    """A step and what is wrong with it; a healthy one has no problems."""

    step: int
    name: str  # of its directory; not the bare number if it was set aside
    problems: tuple[Problem, ...]


def kept_steps(steps: Iterable[int], cfg: CheckpointConfig, best: int | None = None) -> set[int]:
    """Of `steps` those that the policy keeps: the newest, the multiples, and the best one."""
    steps = sorted(steps)
    kept = set(steps[-cfg.keep_last :])
    if cfg.keep_every:
        kept |= {step for step in steps if step % cfg.keep_every == 0}
    return kept | ({best} & set(steps))


class StepStore:
    """The steps of one run; all methods that change something are for the holder of the run lock.

    Args:
        run: the run's directory.
    """

    def __init__(self, run: str | os.PathLike):
        self.root = Path(run).absolute() / FOLDER

    def path(self, step: int) -> Path:
        """Where `step` is or would be."""
        return self.root / str(step)

    def steps(self) -> list[int]:
        """Steps that were committed, oldest first."""
        return sorted(int(name) for name in self._names() if re.fullmatch(r"0|[1-9][0-9]*", name))

    def set_aside(self) -> list[str]:
        """Names of the damaged steps that `quarantine` set aside."""
        return sorted(name for name in self._names() if re.fullmatch(r"\d+\.corrupt-\d+", name))

    def _names(self) -> list[str]:
        return os.listdir(self.root) if self.root.is_dir() else []

    def temp_path(self, step: int) -> Path:
        """Where `step` is written before it is committed."""
        return self.root / f".tmp-{step}"

    def new_temp(self, step: int) -> Path:
        """An empty directory to write `step` into."""
        temp = self.temp_path(step)
        if temp.exists():
            shutil.rmtree(temp)
        temp.mkdir(parents=True)
        faults.reach("temp_made")
        return temp

    def commit(self, temp: Path, content: Manifest) -> None:
        """Make what lies in `temp` the step `content.step`, in one rename. Its files are sealed already."""
        faults.reach("files_synced")
        (temp / manifest.NAME).write_bytes(content.to_json())
        faults.reach("manifest_written")
        durable.sync(temp / manifest.NAME)
        durable.sync_directories(temp)
        faults.reach("manifest_synced")
        final, old = self.path(content.step), self.root / f".old-{content.step}"
        faults.reach("before_rename")
        if final.exists():
            final.rename(old)
            faults.reach("old_aside")
        temp.rename(final)
        faults.reach("after_rename")
        try:
            durable.sync(self.root)
        except OSError:  # the name may not be on disk, so the step is not committed
            final.rename(temp)
            if old.exists():
                old.rename(final)
            raise
        faults.reach("committed")
        if old.exists():
            self._delete(old)

    def discard(self, temp: Path) -> None:
        """Free the space of a step that was not committed."""
        shutil.rmtree(temp, ignore_errors=True)

    def quarantine(self, step: int) -> Path:
        """Set a damaged step aside, so that it is never listed again, and return its new place."""
        taken = set(self.set_aside())
        number = next(n for n in range(1, len(taken) + 2) if f"{step}.corrupt-{n}" not in taken)
        aside = self.root / f"{step}.corrupt-{number}"
        self.path(step).rename(aside)
        durable.sync(self.root)
        return aside

    def prune(self, cfg: CheckpointConfig) -> None:
        """Delete the steps that the policy does not keep."""
        faults.reach("before_prune")
        steps = self.steps()
        kept = kept_steps(steps, cfg, self.best() if cfg.keep_best else None)
        for step in steps:
            if step not in kept:
                self._delete(self.path(step))
        faults.reach("pruned")

    def _delete(self, directory: Path) -> None:
        """Take the name away first: a half-deleted step is no step."""
        trash = self.root / f".trash-{directory.name.removeprefix('.old-')}"
        if trash.exists():
            shutil.rmtree(trash)
        directory.rename(trash)
        faults.reach("trash_named")
        shutil.rmtree(trash)

    def best(self) -> int | None:
        """The step with the lowest `metric` in its meta data, the newest of equals."""
        metrics = {}
        for step in self.steps():
            try:
                metric = manifest.read(self.path(step)).meta.get("metric")
            except ManifestError:
                continue
            if metric is not None and metric == metric:  # NaN is no best
                metrics[step] = metric
        return min(metrics, key=lambda step: (metrics[step], -step), default=None)

    def clean(self) -> None:
        """Remove what a killed process left behind, and finish what it was about to do."""
        for name in self._names():
            if match := re.fullmatch(r"\.old-(\d+)", name):
                if not self.path(int(match[1])).exists():
                    (self.root / name).rename(self.path(int(match[1])))
                    continue
            elif not re.fullmatch(r"\.(tmp|trash)-\d+", name):
                continue
            log.info("removing the leftover %s", self.root / name)
            shutil.rmtree(self.root / name)


def verify_run(run: str | os.PathLike, level: str = "full") -> list[StepReport]:
    """Check every step of the run in directory `run`, oldest first; changes nothing."""
    store = StepStore(run)
    reports = [(int(name.partition(".")[0]), name) for name in store.set_aside()]
    reports += [(step, str(step)) for step in store.steps()]
    return [
        StepReport(step, name, tuple(manifest.verify(store.root / name, level)))
        for step, name in sorted(reports)
    ]
