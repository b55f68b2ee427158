"""What a job has done so far: counts, speed, waiting times, and how that is told while it runs."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from moejax import durable
from moejax.errors import StorageError
from moejax.training.progress import duration

if TYPE_CHECKING:  # it imports jax
    from moejax.serving.batch import Counts
    from moejax.serving.completion import Completion

REPORT_SECONDS = 5.0
PERCENTILES = (50, 90, 99)


class Tally:
    """Counts of answers; `now` is always handed in, from a monotonic clock.

    Args:
      now: when the first request could begin.
      total: requests there are; None = not known.
      before: how many of them an earlier process answered.
      errors: among those.
    """

    def __init__(self, now: float, total: int | None = None, before: int = 0, errors: int = 0):
        self.total, self.before, self.errors = total, before, errors
        self.done = self.prompt_tokens = self.tokens = 0
        self._begin = now
        self._first: list[float] = []
        self._per_token: list[float] = []
        self._cached: int | None = None
        self.engine: Counts | None = None  # of the engine, if it answers

    @property
    def requests(self) -> int:
        """All that are answered."""
        return self.before + self.done

    def add(self, completion: "Completion | None") -> None:
        """Count an answer; None is an error."""
        self.done += 1
        if completion is None:
            self.errors += 1
            return
        self.prompt_tokens += completion.prompt_tokens
        self.tokens += len(completion.tokens)
        timing = completion.timing
        if timing is None:
            return
        self._first.append(timing.first)
        if (seconds := timing.per_token(len(completion.tokens))) is not None:
            self._per_token.append(seconds)
        if timing.cached_tokens is not None:
            self._cached = (self._cached or 0) + timing.cached_tokens

    def rate(self, count: int, now: float) -> float:
        """`count` per second."""
        return count / max(now - self._begin, 1e-9)

    def left(self, now: float) -> float | None:
        """Seconds until all requests are answered, at the pace so far; None if that is not known."""
        if self.total is None or not self.done:
            return None
        return (self.total - self.requests) / self.rate(self.done, now)

    def counts(self, now: float) -> str:
        """`name=value` pairs."""
        return (
            f"requests={self.requests} errors={self.errors} prompt_tokens={self.prompt_tokens} "
            f"tokens={self.tokens} seconds={now - self._begin:.1f} tok/s={self.rate(self.tokens, now):.0f}"
        )

    def line(self, now: float) -> str:
        """The counts, and how much is left."""
        left = self.left(now)
        return self.counts(now) + ("" if left is None else f" total={self.total} left={duration(left)}")

    def summary(self, now: float) -> dict[str, Any]:
        """Everything that is known; times in seconds. What nobody measured is left out."""
        found: dict[str, Any] = {
            "requests": self.requests,
            "errors": self.errors,
            "answered_before": self.before,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "seconds": now - self._begin,
            "requests_per_second": self.rate(self.done, now),
            "completion_tokens_per_second": self.rate(self.tokens, now),
            "time_to_first_token": _percentiles(self._first),
            "time_per_output_token": _percentiles(self._per_token),
            "cached_prompt_tokens": self._cached,
            **self._of_engine(),
        }
        return {name: value for name, value in found.items() if value is not None}

    def _of_engine(self) -> dict[str, Any]:
        if self.engine is None:
            return {}
        steps = max(self.engine.steps, 1)
        return {
            "steps": self.engine.steps,
            "rows_per_step": self.engine.rows / steps,
            "found_in_cache": self.engine.shared,
            "experts_per_step": self.engine.expert_loads / steps,
        }

    def closing(self, now: float) -> list[str]:
        """The last lines of a job: its counts, and the percentiles that are known."""
        found = self.summary(now)
        lines = [f"done: {self.counts(now)}"]
        for name, short in (("time_to_first_token", "ttft"), ("time_per_output_token", "tpot")):
            if name in found:
                pairs = (f"{short}_{which}={value * 1e3:.1f}ms" for which, value in found[name].items())
                lines.append(" ".join(pairs))
        if self._cached is not None:
            lines.append(f"cached_prompt_tokens={self._cached} of {self.prompt_tokens}")
        if self.engine is not None:
            own = self._of_engine()
            lines.append(" ".join(f"{name}={value:.4g}" for name, value in own.items()))
        return lines


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    values = np.percentile(seconds, PERCENTILES)
    return {f"p{which}": float(value) for which, value in zip(PERCENTILES, values, strict=True)}


class Progress:
    """Shows a tally on standard error: a bar on a terminal, elsewhere a line every few seconds."""

    def __init__(self, tally: Tally, stream: TextIO | None = None):
        self.tally, self._stream = tally, stream or sys.stderr
        self._reported = time.monotonic()
        self._bar = _bar(self._stream, tally)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def add(self, completion: "Completion | None") -> None:
        """Count an answer."""
        self.tally.add(completion)
        now = time.monotonic()
        if self._bar:
            speed = self.tally.rate(self.tally.tokens, now)
            self._bar.update(self._bar.task_ids[0], completed=self.tally.requests, speed=f"{speed:.0f} tok/s")
        elif now - self._reported >= REPORT_SECONDS:
            print(self.tally.line(now), file=self._stream, flush=True)
            self._reported = now

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()


def _bar(stream: TextIO, tally: Tally):
    """A rich progress bar, if somebody watches."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    bar = Progress("answers", *columns, console=Console(file=stream), transient=True)
    bar.add_task("answers", total=tally.total, completed=tally.before, speed="")
    return bar


def write_summary(path: str | None, summary: dict[str, Any]) -> None:
    """Write a summary as JSON; nothing without a path.

    Raises:
      StorageError: the disk is full or failed.
    """
    if path is None:
        return
    try:
        durable.write_file(Path(path), (json.dumps(summary, indent=1) + "\n").encode())
    except OSError as error:
        raise StorageError(f"--summary={path} cannot be written: {error.strerror}") from error
