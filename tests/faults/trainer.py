"""`train.py` in processes of its own, and what they leave behind."""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from moejax.config import CheckpointConfig
from moejax.training import manifest, metrics
from moejax.training.checkpoint import Checkpointer
from moejax.training.step_store import StepStore, verify_run
from tests import quick_compile

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = "tests/faults/recipe.py"
PATIENCE = 240  # seconds for a process that needs five on an idle core


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended; a negative code is the signal that killed it."""

    code: int
    output: str  # stdout and stderr as they came


class Process:
    """A program that runs."""

    def __init__(self, arguments: list[str], env: dict[str, str]):
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._popen = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=env, stdout=self._log, stderr=subprocess.STDOUT
        )
        self.pid = self._popen.pid

    def output(self) -> str:
        """What it has said so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def is_running(self) -> bool:
        return self._popen.poll() is None

    def wait_until(self, condition) -> bool:
        """Whether `condition()` came true while the process ran."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if not self.is_running():
                return False
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise TimeoutError(self.output())
            time.sleep(0.005)
        return True

    def wait(self) -> Ended:
        """How it ended."""
        try:
            code = self._popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            raise TimeoutError(self.output()) from None
        output = self.output()
        self._log.close()
        return Ended(code, output)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Starts `train.py` on one small text."""

    text: pathlib.Path
    cache: pathlib.Path  # of compiled programs and packed text, shared by all processes
    xla_flags: str = quick_compile.FLAGS

    def start(self, run_dir, *flags: str, faults="", devices=1, config=RECIPE, python=()) -> Process:
        """Start the run in `run_dir`; `faults` as in MOEJAX_FAULTS, `python`: options of the interpreter."""
        env = {name: value for name, value in os.environ.items() if name != "NPROC"} | {
            "XLA_FLAGS": self.xla_flags,
            "JAX_COMPILATION_CACHE_DIR": str(self.cache / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "MOEJAX_TESTING": "1",
            "MOEJAX_FAULTS": faults,
            "PYTHONUNBUFFERED": "1",
        }
        data = (f"--config.data.source={self.text}", f"--config.data.cache_dir={self.cache}")
        own = (f"--config={config}", f"--workdir={run_dir}")
        return Process([*python, "train.py", *own, *data, *flags], env)

    def __call__(self, run_dir, *flags: str, **settings) -> Ended:
        """Start, and wait for the end."""
        return self.start(run_dir, *flags, **settings).wait()


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint, read without the program that wrote it."""

    step: int
    leaf: dict[str, np.ndarray]
    meta: dict[str, Any]


def saved(run_dir, step: int | None = None) -> Saved:
    """The checkpoint of `step`, or the newest."""
    checkpoints = Checkpointer(run_dir, CheckpointConfig(), read_only=True)
    step = checkpoints.latest() if step is None else step
    tensors = manifest.read(StepStore(run_dir).path(step)).tensors
    abstract = {tensor.name: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype) for tensor in tensors}
    restored = checkpoints.restore(abstract, step=step)
    return Saved(step, {name: np.asarray(leaf) for name, leaf in restored.state.items()}, restored.meta)


def differing(a: Saved, b: Saved) -> list[str]:
    """What is not bit-equal in two checkpoints; nothing if they are one and the same."""
    assert len(a.leaf) > 10, "a state has more than ten leaves"
    names = sorted(a.leaf.keys() | b.leaf.keys())
    here = [name for name in names if name not in a.leaf or name not in b.leaf]
    here += [name for name in names if name not in here and a.leaf[name].tobytes() != b.leaf[name].tobytes()]
    return here + [name for name in ("step", "meta") if getattr(a, name) != getattr(b, name)]


def steps(run_dir) -> list[int]:
    """The steps that were committed."""
    return StepStore(run_dir).steps()


def leftovers(run_dir) -> list[str]:
    """What lies among the checkpoints and is none."""
    root = StepStore(run_dir).root
    return sorted(path.name for path in root.iterdir() if not path.name.isdecimal()) if root.is_dir() else []


def is_sound(run_dir) -> bool:
    """Whether every checkpoint that is listed is what was written."""
    return not any(report.problems for report in verify_run(run_dir))


def losses(run_dir) -> list[tuple[int, float]]:
    """(step, loss) of every training line, in file order."""
    return [(line["step"], line["train/loss"]) for line in metrics.read(run_dir) if "train/loss" in line]


def last_logged(run_dir) -> int:
    """The newest step that was logged; 0 before the first."""
    return max((step for step, _ in losses(run_dir)), default=0)


def cut(straight: pathlib.Path, run_dir: pathlib.Path, last_step: int) -> pathlib.Path:
    """A copy of a run as it was when it had saved `last_step`."""
    shutil.copytree(straight, run_dir)
    for step in steps(run_dir):
        if step > last_step:
            shutil.rmtree(StepStore(run_dir).path(step))
    return run_dir
