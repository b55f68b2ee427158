"""The one line that a run prints per report, the time it still needs, and its warnings.

A line is `name=value` pairs, which `dict(pair.split("=") for pair in line.split())` reads:

    step=120/1500 loss=3.412 tok/s=4512 gflop/s=61.2 data_wait=0.4% eta=4m12s load_max=1.31 dead=0
"""

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np

from moejax.training.health import Health, HealthState

WINDOW = 50  # reports whose pace the remaining time is estimated from
OUTLIER = 10  # times the median pace, to which a single report counts at most


@dataclasses.dataclass(frozen=True)
class Pace:
    """Seconds per step of the recent reports; `now` is always handed in, from a monotonic clock."""

    last: tuple[int, float] | None = None  # step and time of the latest report
    seconds: tuple[float, ...] = ()  # per step, one entry per report

    def observe(self, step: int, now: float) -> "Pace":
        """The pace after one more report; a clock that ran backwards is ignored."""
        if self.last is None:
            return Pace((step, now))
        steps, elapsed = step - self.last[0], now - self.last[1]
        seconds = self.seconds
        if steps > 0 and elapsed > 0:
            seconds = (*seconds, elapsed / steps)[-WINDOW:]
        return Pace((step, now), seconds)

    def remaining(self, total: int) -> float | None:
        """Seconds until step `total`; None before two reports.

        The mean counts evaluations and checkpoints in; a compile, a suspended machine or a clock that jumped
        would drown it, so no report counts for more than ten times the median.
        """
        if self.last is None or not self.seconds:
            return None
        bound = OUTLIER * float(np.median(self.seconds))
        return max(total - self.last[0], 0) * float(np.minimum(self.seconds, bound).mean())


def duration(seconds: float) -> str:
    """`45s`, `4m12s`, `3h07m` or `2d05h`."""
    seconds = max(round(seconds), 0)
    for size, unit, minor_size, minor in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // minor_size:02d}{minor}"
    return f"{seconds}s"


def report_line(
    step: int, total: int, metrics: Mapping[str, Any], eta: float | None, peak_flops: float = 0
) -> str:
    """One parsable line; what is not known is left out.

    Args:
      metrics: as written to `metrics.jsonl`; `dead` (experts) may be added by the caller.
      eta: seconds until the last step, or None.
      peak_flops: of all devices together, per second; adds the utilisation `mfu`.
    """
    known = {**metrics, "eta": eta}
    if peak_flops > 0 and "speed/flops_per_s" in metrics:
        known["mfu"] = metrics["speed/flops_per_s"] / peak_flops
    if "time/data_s" in metrics and metrics.get("time/step_s"):
        known["data_wait"] = metrics["time/data_s"] / metrics["time/step_s"]
    if not metrics.get("health/skipped"):
        known["health/skipped"] = None
    pairs = [
        f"{label}={form(float(known[name]))}" for name, label, form in FIELDS if known.get(name) is not None
    ]
    return " ".join([f"step={step}/{total}", *pairs])


def _fixed(digits: int):
    return lambda value: f"{value:.{digits}f}"


def _share(value: float) -> str:
    return f"{value:.1%}"


FIELDS = (  # metric, its name in the line, its form
    ("train/loss", "loss", _fixed(3)),
    ("train/grad_norm", "grad_norm", lambda value: f"{value:.3g}"),
    ("speed/tokens_per_s", "tok/s", _fixed(0)),
    ("speed/flops_per_s", "gflop/s", lambda value: f"{value / 1e9:.1f}"),
    ("mfu", "mfu", _share),
    ("data_wait", "data_wait", _share),
    ("memory/peak_bytes", "mem_gib", lambda value: f"{value / 2**30:.2f}"),
    ("eta", "eta", duration),
    ("router/load_max", "load_max", _fixed(2)),
    ("router/dropped", "dropped", _share),
    ("router/entropy", "entropy", _fixed(2)),
    ("dead", "dead", _fixed(0)),
    ("health/skipped", "skipped", _fixed(0)),  # updates in a row, not finite or a spike
)


def evaluation_line(step: int, metrics: Mapping[str, Any], baselines: Mapping[str, float]) -> str:
    """Held-out loss (nats per token) and bits per byte beside those of the compressors."""
    pairs = [f"step={step}"]
    if "eval/loss" in metrics:
        pairs.append(f"held_out_loss={float(metrics['eval/loss']):.3f}")
    if "eval/bits_per_byte" in metrics:
        pairs.append(f"held_out_bits_per_byte={float(metrics['eval/bits_per_byte']):.3f}")
    return " ".join([*pairs, *(f"{name.replace(' ', '')}={bits:.3f}" for name, bits in baselines.items())])


class Progress:
    """Prints the lines of one run and keeps its pace and its health.

    Colour is used on a terminal only, and not with NO_COLOR; elsewhere lines are plain. A closed output
    (a terminal that went away) silences the lines and leaves the run alone.

    Args:
      total: steps of the whole run.
      peak_flops: of all devices together, per second; 0 prints GFLOP/s instead of a utilisation.
      stream: where to print; standard output by default.
    """

    def __init__(
        self, total: int, peak_flops: float = 0, health: Health = Health(), stream: TextIO | None = None
    ):
        self.total = total
        self.peak_flops = peak_flops
        self.health = health
        self.state = HealthState()
        self.pace = Pace()
        self._stream = stream or sys.stdout
        self._console = _console(self._stream)
        self._silent = False

    def start(self, step: int, now: float) -> None:
        """Begin the clock at the step that the run starts or resumes from."""
        self.pace = Pace().observe(step, now)

    def report(self, step: int, metrics: Mapping[str, Any], now: float) -> list[str]:
        """Print the line of this step and what is wrong with it; returns the warnings.

        Args:
          metrics: as written to `metrics.jsonl`.
          now: seconds of a monotonic clock.
        """
        self.pace = self.pace.observe(step, now)
        self.state, warnings = self.health.observe(self.state, step, metrics)
        if (dead := self.health.num_dead(self.state)) is not None:
            metrics = {**metrics, "dead": dead}
        eta = self.pace.remaining(self.total)
        self.say(report_line(step, self.total, metrics, eta, self.peak_flops))
        for words in warnings:
            self.say(f"warning: {words}", style="yellow")
        return warnings

    def evaluation(self, step: int, metrics: Mapping[str, Any], baselines: Mapping[str, float]) -> None:
        """Print the held-out figures beside the compressors'."""
        self.say(evaluation_line(step, metrics, baselines), style="cyan")

    def say(self, line: str, style: str = "") -> None:
        """Print one line of text."""
        if self._silent:
            return
        try:
            if self._console is None:
                print(line, file=self._stream, flush=True)
            else:
                self._console.print(line, style=style, markup=False, highlight=not style, soft_wrap=True)
        except (OSError, ValueError):  # ValueError is what a closed stream raises
            self._silent = True


def _console(stream: TextIO):
    """A rich console on a terminal that wants colour, else None."""
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return None
    from rich.console import Console

    return Console(file=stream)
