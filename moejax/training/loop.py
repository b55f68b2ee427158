"""The training loop: restore or begin, then step, report, evaluate, save, until the last step.

One loop serves every method: what differs between methods is in the run's strategies, not here.
"""

import dataclasses
import logging
import pathlib
import time

import jax

from moejax.analysis.machine import peak_flops
from moejax.errors import NonFiniteError, RetryError, UsageError
from moejax.overrides import Resolved
from moejax.training import compression, faults, finish, out_of_memory, post_mortem, run_files, sdc
from moejax.training.checkpoint import Checkpointer, Restored
from moejax.training.data.corpus import Corpus, prepare
from moejax.training.evaluation import Evaluator
from moejax.training.feed import Feed
from moejax.training.program import Program, build
from moejax.training.reporter import Reporter
from moejax.training.signals import Interrupt
from moejax.training.state import TrainState
from moejax.training.tracer import StepTracer
from moejax.training.watchdog import Watchdog

COMPLAINTS_SHOWN = 5  # records that could not be read, one line each

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    run_dir: pathlib.Path
    step: int
    bits_per_byte: float  # of all held-out text
    baselines: dict[str, float]  # bits per byte of the compressors, on the same text; in the first process
    seconds: float


def train(resolved: Resolved, run_dir) -> Result:
    """Train in `run_dir`, or go on where an earlier call stopped.

    The caller holds the directory's RunLock if others may write to it.

    Args:
      resolved: the run, and where each of its values came from.
      run_dir: everything that the run writes is in it.

    Raises:
      UsageError: the run cannot work on these devices, or is past `train.steps`.
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
    _tell_idle_devices(program)
    log.info("reading the text")
    corpus = prepare(run.data, run.model.vocab, run.train.seq_len)
    _tell_unread(corpus)
    run_files.check(run_dir, resolved, corpus)
    checkpoints = Checkpointer(run_dir, run.train.checkpoint)
    with program.mesh_context(), Interrupt() as interrupt, checkpoints, out_of_memory.explained(program):
        feed = Feed(program, corpus)
        restored = _restore(program, checkpoints, feed)
        run_files.write(run_dir, resolved, corpus)
        trainer = Trainer(program, run_dir, corpus, feed, checkpoints)
        state, result = trainer.run(restored, interrupt)
        trainer.reporter.close()
    log.info("writing text samples and the report")
    finish.write_all(run_dir, program, state, corpus)
    _tell_unread(corpus)
    seconds = time.monotonic() - begin
    return Result(run_dir, run.train.steps, result["eval/bits_per_byte"], trainer.baselines, seconds)


def _tell_idle_devices(program: Program) -> None:
    used = program.mesh.size if program.mesh else 1
    if used < jax.device_count():
        log.info("using %d of %d devices; --config.mesh.data=-1 takes all", used, jax.device_count())


def _tell_unread(corpus: Corpus) -> None:
    if corpus.errors.total:
        lines = [corpus.errors.summary(), *corpus.errors.first[:COMPLAINTS_SHOWN]]
        log.info("%s", "\n  ".join(lines))


def _restore(program: Program, checkpoints: Checkpointer, feed: Feed) -> Restored | None:
    restored = checkpoints.restore(program.abstract_state())
    if restored is None:
        return None
    steps = program.run.train.steps
    if restored.step > steps:
        raise UsageError(
            f"this run is at step {restored.step}, train.steps={steps}; raise --config.train.steps to "
            "go on, or choose another --workdir"
        )
    log.info("going on from step %d", restored.step)
    feed.restore(restored.meta)
    return restored


class Trainer:
    """The parts of a running run, and the loop over its steps."""

    def __init__(
        self, program: Program, run_dir: pathlib.Path, corpus: Corpus, feed: Feed, checkpoints: Checkpointer
    ):
        self._program, self._run_dir, self._cfg = program, run_dir, program.run.train
        self._feed, self._checkpoints = feed, checkpoints
        self._evaluate = Evaluator(program, corpus)
        self._trace = StepTracer(program, run_dir)
        self._beat = lambda: None  # the watchdog's, while it watches
        self.baselines = {}
        if jax.process_index() == 0:
            self.baselines = compression.baselines(corpus.held_out_text(), run_dir / "baselines.json")

    def run(self, restored: Restored | None, interrupt: Interrupt) -> tuple[TrainState, dict[str, float]]:
        """All steps that are left; returns the last state and its figures on all held-out text."""
        cfg = self._cfg
        state = restored.state if restored else self._program.init()
        first = restored.step if restored else 0
        result = restored.meta.get("result") if restored and first == cfg.steps else None
        self._prepare(first)
        with Watchdog(cfg.watchdog_seconds, self._run_dir) as watchdog:
            self._beat = watchdog.beat
            for done in range(first + 1, cfg.steps + 1):
                state = self._one_step(state, done)
                self._beat()
                self._checkpoints.poll()
                result = self._evaluate_if_due(state, done)
                self._beat()
                stop = interrupt.should_stop(done)
                if stop or done % cfg.checkpoint.every == 0 or done == cfg.steps:
                    self._save(done, state, result)
                    self._beat()
                if stop:
                    self._checkpoints.wait_for(done)
                    raise RetryError(interrupt.describe(done))
        self._checkpoints.wait_for(cfg.steps)
        return state, result or self.evaluate(state, cfg.steps)

    def evaluate(self, state: TrainState, done: int, limit_rows: int | None = None) -> dict[str, float]:
        """Measure and report the held-out loss."""
        self.reporter.flush()
        if limit_rows is None:
            self.reporter.say("measuring all held-out text")
        begin = time.monotonic()
        metrics = self._evaluate(state, limit_rows, self._beat)
        self.reporter.evaluated(done, metrics, self.baselines, time.monotonic() - begin)
        return metrics

    def _prepare(self, first: int) -> None:
        """Compile, if there are steps left, and open the files of the reports."""
        begin = time.monotonic()
        if first < self._cfg.steps:
            log.info("compiling the train step")
            self._step = self._program.compile_step()
        seconds = time.monotonic() - begin
        peak = (peak_flops() or 0) * jax.device_count()
        self.reporter = Reporter(self._cfg, self._run_dir, first, peak, self._program.flops_per_step)
        if first < self._cfg.steps:
            self.reporter.say(f"compiled the train step in {seconds:.1f} s")

    def _one_step(self, state: TrainState, done: int) -> TrainState:
        faults.strike(done)
        state = state.replace(params=faults.break_expert(done, state.params))
        batch = self._feed.next(done)
        self._trace(state, batch, done)
        if self._cfg.verify_every and done % self._cfg.verify_every == 0:
            (state, metrics), problem = sdc.checked_step(self._step, state, batch, done)
            if problem:
                log.error("silent data corruption: %s", problem)
        else:
            state, metrics = self._step(state, batch)
        self.reporter.after(done, metrics, self._feed.waited)
        skipped, most = self.reporter.skipped, self._cfg.max_skipped
        if skipped >= most:
            why = (
                f"{skipped} updates in a row up to step {done} were skipped, because the loss or a gradient "
                f"was not finite or spiked (train.max_skipped={most})"
            )
            self._give_up(state, done, why, "a lower train.optim.learning_rate is the usual cure")
        return state

    def _evaluate_if_due(self, state: TrainState, done: int) -> dict[str, float] | None:
        """Before the save of the same step, so that the checkpoint knows how good it is."""
        if done == self._cfg.steps:
            return self.evaluate(state, done)
        due = self._cfg.eval_every and done % self._cfg.eval_every == 0
        return self.evaluate(state, done, self._cfg.eval_rows) if due else None

    def _save(self, done: int, state: TrainState, result: dict[str, float] | None) -> None:
        self.reporter.flush()
        if not all(post_mortem.finite_leaves(state).values()):
            why = f"the state of step {done} is not finite and was not saved, though every update was"
            self._give_up(state, done, why, "the same command goes on from the newest checkpoint")
        meta = self._feed.meta()
        if done == self._cfg.steps:  # over all rows: not to be compared, and the last step is kept anyway
            meta |= {"result": result}
        elif result:
            meta |= {"metric": result["eval/loss"]}
        self._checkpoints.save(done, state, meta)
        self.reporter.saved()

    def _give_up(self, state: TrainState, done: int, why: str, cure: str) -> None:
        """Leave what is needed to find out why, and end."""
        facts = {"skipped_in_a_row": self.reporter.skipped, "batches": self._feed.meta()}
        found = post_mortem.write(self._run_dir, done, state, self.reporter.bad_gradients, facts)
        self._checkpoints.wait()
        raise NonFiniteError(f"{why}; {found}; {cure}")
