"""From the device's metrics to lines, files and the decision that a run has gone wrong."""

import time

import jax
import numpy as np

from moejax.training.metrics import MetricsWriter
from moejax.training.progress import Progress
from moejax.training.step import BAD_GRADIENTS

SKIPS_SAID = 10  # skipped updates that are told one by one


class Reporter:
    """Takes the metrics of every step, fetches them one step late, and reports every `log_every` steps.

    Fetching late keeps the device busy: when the host waits for step n, step n + 1 is already queued.
    """

    def __init__(self, cfg, run_dir, first_step: int, peak_flops: float, flops_per_step: float):
        self.skipped = 0  # updates skipped in a row, as of the step before the latest
        self.bad_gradients = None  # of the last update that was skipped: per leaf, whether it was not finite
        self._total_skipped = 0
        self._cfg = cfg
        self._flops = flops_per_step
        self._tokens = cfg.batch_rows * cfg.seq_len
        self._is_first = jax.process_index() == 0
        self._writer = MetricsWriter(run_dir, first_step or None) if self._is_first else None
        self._progress = Progress(cfg.steps, peak_flops)
        self._pending = None
        self._mark = Mark(first_step)
        self._progress.start(first_step, time.monotonic())

    def say(self, line: str) -> None:
        """One line on the screen of the first process."""
        if self._is_first:
            self._progress.say(line)

    def after(self, step: int, metrics, waited: float) -> None:
        """Step number `step` was queued and will give `metrics`; `waited`: seconds for data so far."""
        self.flush()
        self._pending = (step, metrics, waited)

    def flush(self) -> None:
        """Take note of the latest step, waiting for it if need be."""
        if self._pending is None:
            return
        (step, metrics, waited), self._pending = self._pending, None
        metrics = dict(metrics)
        bad_gradients = metrics.pop(BAD_GRADIENTS)
        self.skipped = int(metrics["health/skipped"])
        if self.skipped:
            self.bad_gradients = np.asarray(bad_gradients)
            self._tell_skipped(step, metrics)
        if step % self._cfg.log_every and step != self._cfg.steps:
            return
        host = {name: np.asarray(value) for name, value in metrics.items()}
        host |= self._mark.speed(step, waited, self._tokens, self._flops)
        if self._is_first:
            self._writer.write(step, host)
            self._progress.report(step, host, time.monotonic())

    def _tell_skipped(self, step: int, metrics) -> None:
        """Say it of each of the first, then of every so many: a long run may skip now and then."""
        self._total_skipped += 1
        if self._total_skipped > SKIPS_SAID and self._total_skipped % SKIPS_SAID:
            return
        loss, norm = float(metrics["train/loss"]), float(metrics["train/grad_norm"])
        why = "a spike" if np.isfinite(loss) and np.isfinite(norm) else "not finite"
        self.say(
            f"warning: the update of step {step} was skipped, {why}: "
            f"loss {loss:.4g}, gradient norm {norm:.4g} "
            f"({self.skipped} in a row, {self._total_skipped} since the start)"
        )

    def evaluated(self, step: int, metrics: dict, baselines: dict, seconds: float) -> None:
        """Report an evaluation; the `seconds` that it took were not training."""
        if self._is_first:
            self._writer.write(step, metrics)
            self._progress.evaluation(step, metrics, baselines)
        self._mark.leave_out(seconds)

    def saved(self) -> None:
        """Make the lines so far as durable as the checkpoint that was just begun."""
        if self._is_first:
            self._writer.flush()

    def close(self) -> None:
        """Report what is left, and in how many steps nothing was learnt."""
        self.flush()
        if self._total_skipped:
            self.say(f"warning: {self._total_skipped} updates were skipped since the start")
        if self._is_first:
            self._writer.close()


class Mark:
    """The step, time and data wait of the last report."""

    def __init__(self, step: int):
        self._step, self._time, self._waited = step, time.monotonic(), 0.0

    def speed(self, step: int, waited: float, tokens: int, flops: float) -> dict[str, float]:
        """Seconds, tokens and FLOPs per step since the last report."""
        now = time.monotonic()
        steps = max(step - self._step, 1)
        seconds = max(now - self._time, 1e-9) / steps
        waited_s = (waited - self._waited) / steps
        self._step, self._time, self._waited = step, now, waited
        return {
            "time/step_s": seconds,
            "time/data_s": waited_s,
            "speed/tokens_per_s": tokens / seconds,
            "speed/flops_per_s": flops / seconds,
        }

    def leave_out(self, seconds: float) -> None:
        """Take `seconds` out of the interval that the next report covers."""
        self._time += seconds
