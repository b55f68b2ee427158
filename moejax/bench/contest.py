"""One task and everybody who can do it, timed in turns: moejax, its peers, and bounds that cheat."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax

from moejax.bench.report import Measure, median
from moejax.bench.rounds import interleave, seconds

OURS, DENSE = "moejax", "dense"
LEAST_SECONDS = 0.05  # of a sample: it repeats the task until it lasts so long


@dataclasses.dataclass(frozen=True)
class Contest:
    """A task that several can do."""

    name: str
    flops: int  # that the task needs at least
    contestants: Callable[[], Mapping[str, Callable[[], Any]]]  # makes the operands
    slow: str = ""  # who is timed once and last: it takes long, and leaves memory in another state


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Seconds of every contestant; who could not take part, and why."""

    contest: Contest
    seconds: Mapping[str, list[float]]
    absent: Mapping[str, str]

    def measures(self) -> list[Measure]:
        """Rates, and moejax's share of the rate of the others."""
        found = [
            median(f"{self.contest.name}: {name}", [self.contest.flops / s / 1e9 for s in taken], "GFLOP/s")
            for name, taken in self.seconds.items()
        ]
        if OURS not in self.seconds:
            return found
        ours = statistics.median(self.seconds[OURS])
        for name, taken in self.seconds.items():
            if name != OURS:
                ratio = statistics.median(taken) / ours
                found.append(
                    Measure(f"{self.contest.name}: {OURS} / {name}", ratio, "x", "higher", len(taken))
                )
        return found

    def notes(self) -> list[str]:
        return [f"{self.contest.name}: {name} is absent: {why}" for name, why in self.absent.items()]


def hold(contest: Contest, num_rounds: int, least_seconds: float = LEAST_SECONDS) -> Outcome:
    """Let everybody who can run the task; a contestant that fails is absent, with its reason."""
    absent, ready = {}, {}
    tasks = {name: _waited(task) for name, task in contest.contestants().items()}
    late = {name: tasks.pop(name) for name in tuple(tasks) if name == contest.slow}
    for name, task in tasks.items():
        once = _warm(task, name, absent)
        if once:
            ready[name] = task, max(1, math.ceil(least_seconds / once))
    rounds = {name: _repeated(task, times) for name, (task, times) in ready.items()}
    samples = interleave(rounds, num_rounds, 1, lambda: None)
    taken = {name: [s / ready[name][1] for s in samples[name]] for name in ready}
    for name, task in late.items():
        once = _warm(task, name, absent)
        taken |= {name: [once]} if once else {}
    return Outcome(contest, taken, absent)


def _warm(task: Callable[[], None], name: str, absent: dict[str, str]) -> float | None:
    """Seconds of a second run; a failure is noted in `absent`, of whatever kind it is: it is a finding."""
    try:
        task()
        return seconds(task, 1)
    except Exception as error:
        absent[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        return None


def _waited(task: Callable[[], Any]) -> Callable[[], None]:
    return lambda: jax.block_until_ready(task())


def _repeated(task: Callable[[], None], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            task()

    return run
