"""The training loop: restore or begin, then step, report, evaluate, save, until the last step.

One loop serves every method: what differs between methods is in the run's strategies, not here.
"""

import dataclasses
import json
import logging
import pathlib
import time

import jax
import jax.numpy as jnp

from moejax.analysis.machine import peak_flops
from moejax.errors import NonFiniteError, RetryError
from moejax.overrides import Resolved
from moejax.specs import path_name
from moejax.training import compression, durable, faults, finish, run_files, sdc
from moejax.training.checkpoint import Checkpointer
from moejax.training.data.corpus import Corpus, prepare
from moejax.training.evaluation import Evaluator
from moejax.training.feed import Feed
from moejax.training.program import Program, build
from moejax.training.reporter import Reporter
from moejax.training.signals import Interrupt
from moejax.training.state import TrainState
from moejax.training.watchdog import Watchdog

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    run_dir: pathlib.Path
    step: int
    bits_per_byte: float  # of all held-out text
    baselines: dict[str, float]  # bits per byte of the compressors, on the same text
    seconds: float


def train(resolved: Resolved, run_dir) -> Result:
    """Train in `run_dir`, or go on where an earlier call stopped.

    The caller holds the directory's RunLock if others may write to it.

    Args:
      resolved: the run, and where each of its values came from.
      run_dir: everything that the run writes is in it.

    Raises:
      UsageError: the run cannot work on these devices.
      DataError: no text, or other text than the run began with.
      CheckpointError: every checkpoint is damaged, or belongs to another model.
      RetryError: stopped by a signal, after saving.
      NonFiniteError: too many updates in a row were skipped.
      StorageError: the disk is full or failed.
    """
    begin = time.monotonic()
    faults.plan()  # a malformed one is refused now
    run_dir = pathlib.Path(run_dir)
    program = build(resolved.config)
    run = program.run
    corpus = prepare(run.data, run.model.vocab, run.train.seq_len)
    run_files.open_run(run_dir, resolved, corpus)
    with program.mesh_context(), Interrupt() as interrupt:
        trainer = Trainer(program, run_dir, corpus)
        state = trainer.run(interrupt)
        metrics = trainer.evaluate(state)
        trainer.reporter.close()
    finish.write_all(run_dir, program, state, corpus)
    return Result(
        run_dir, run.train.steps, metrics["eval/bits_per_byte"], trainer.baselines, time.monotonic() - begin
    )


class Trainer:
    """The parts of a running run, and the loop over its steps."""

    def __init__(self, program: Program, run_dir: pathlib.Path, corpus: Corpus):
        self._program, self._run_dir, self._cfg = program, run_dir, program.run.train
        self._checkpoints = Checkpointer(run_dir, self._cfg.checkpoint)
        self._feed = Feed(program, corpus)
        self._state = self._restore() or program.init()
        self._evaluate = Evaluator(program, corpus)
        self.baselines = compression.baselines(corpus.held_out_text(), run_dir / "baselines.json")
        begin = time.monotonic()
        self._step = program.compile_step()
        peak = (peak_flops() or 0) * jax.device_count()
        self.reporter = Reporter(self._cfg, run_dir, int(self._state.step), peak, program.flops_per_step)
        self.reporter.say(f"compiled the train step in {time.monotonic() - begin:.1f} s")

    def run(self, interrupt: Interrupt) -> TrainState:
        """All steps that are left; returns the last state. Call it once: steps donate the state."""
        cfg, state, self._state = self._cfg, self._state, None
        with Watchdog(cfg.watchdog_seconds, self._run_dir) as watchdog:
            for done in range(int(state.step) + 1, cfg.steps + 1):
                state = self._one_step(state, done)
                watchdog.beat()
                self._checkpoints.poll()
                stop = interrupt.should_stop(done)
                if stop or done % cfg.checkpoint.every == 0 or done == cfg.steps:
                    self._save(done, state)
                if stop:
                    self._checkpoints.wait_for(done)
                    raise RetryError(interrupt.describe(done))
                if done % cfg.eval_every == 0 and done < cfg.steps:
                    self.evaluate(state, cfg.eval_rows)
                    watchdog.beat()
        self._checkpoints.wait_for(cfg.steps)
        return state

    def evaluate(self, state: TrainState, limit_rows: int | None = None) -> dict[str, float]:
        """Measure and report the held-out loss."""
        self.reporter.flush()
        begin = time.monotonic()
        metrics = self._evaluate(state, limit_rows)
        self.reporter.evaluated(int(state.step), metrics, self.baselines, time.monotonic() - begin)
        return metrics

    def _restore(self) -> TrainState | None:
        restored = self._checkpoints.restore(self._program.abstract_state())
        if restored is None:
            return None
        log.info("going on from step %d in %s", restored.step, self._run_dir)
        self._feed.restore(restored.meta)
        return restored.state

    def _one_step(self, state: TrainState, done: int) -> TrainState:
        faults.strike(done)
        batch = self._feed.next(done)
        if self._cfg.verify_every and done % self._cfg.verify_every == 0:
            (state, metrics), problem = sdc.checked_step(self._step, state, batch, done)
            if problem:
                log.error("silent data corruption: %s", problem)
        else:
            state, metrics = self._step(state, batch)
        self.reporter.after(done, metrics, self._feed.waited)
        if self.reporter.skipped >= self._cfg.max_skipped:
            self._give_up(state, done)
        return state

    def _save(self, done: int, state: TrainState) -> None:
        self.reporter.flush()
        self._checkpoints.save(done, state, self._feed.meta())
        self.reporter.saved()

    def _give_up(self, state: TrainState, done: int) -> None:
        """Leave what is needed to find out why, and end."""
        finite = jax.tree_util.tree_map_with_path(
            lambda path, x: (path_name(path), bool(jnp.all(jnp.isfinite(x)))), state.params
        )
        bundle = {
            "step": done,
            "skipped_in_a_row": self.reporter.skipped,
            "batches": self._feed.meta(),
            "finite": dict(jax.tree.leaves(finite, is_leaf=lambda x: isinstance(x, tuple))),
        }
        path = self._run_dir / f"skipped-{done}.json"
        durable.write_file(path, json.dumps(bundle, indent=1).encode())
        self._checkpoints.wait()
        raise NonFiniteError(
            f"{self.reporter.skipped} updates in a row up to step {done} were skipped, because the loss or its "
            f"gradient was not finite or spiked (train.max_skipped={self._cfg.max_skipped}); {path} says which "
            "parameters are finite; a lower train.optim.learning_rate or a longer warm-up is the usual cure"
        )
