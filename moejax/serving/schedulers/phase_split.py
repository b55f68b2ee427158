"""Prefill and decoding as two queues that share one device by plan.

Nexus: Proactive Intra-GPU Disaggregation of Prefill and Decode in LLM Serving (Shi et al. 2025, arXiv
2507.06608). A model of cost says what share of the device each phase should have now
(`analysis.phase_split_plan`); changes smaller than rule.delta are not made. Prompts are read shortest first,
where waiting makes shorter:
    score = left - gamma * seconds waited
in ascending order up to the budget, until one does not fit. Every request that writes is part of every step
of decoding.

Differs from the paper: JAX cannot give parts of a GPU to two streams, so phases take turns. Each step is of
one phase, and steps take turns such that the time they are expected to take is split as planned. A prompt
longer than the budget counts as the budget and is read in chunks, or it would wait for ever.
"""

import dataclasses
from collections.abc import Sequence

from moejax.analysis import phase_split_plan
from moejax.analysis.phase_split_plan import Device, Operator, Rule, Shape
from moejax.config import require
from moejax.serving.plan import Scheduler
from moejax.serving.state import Job, Running, ServeState, Work


@dataclasses.dataclass
class _Turns:
    """What is kept between steps: time that each phase was given since both had work, by its share."""

    share: int = 50  # percent of prefill, as applied
    target: int = 50  # as chosen last; where the next search begins
    read: float = 0.0
    write: float = 0.0


@dataclasses.dataclass(frozen=True)
class PhaseSplit(Scheduler):
    shape: Shape  # of the model
    device: Device
    budget: int = 2048  # tokens of prompts in a step
    gamma: float = 15.0  # tokens per second
    rule: Rule = Rule()

    def __post_init__(self):
        require(self.budget >= 1, f"scheduler.budget={self.budget} must be at least 1")
        require(self.gamma >= 0, f"scheduler.gamma={self.gamma} must be at least 0")

    def start(self, state: ServeState) -> None:
        state.memo = _Turns()

    def plan(self, state: ServeState, now: float) -> list[Work]:
        turns, writers = state.memo, [run for run in state.running.values() if _writes(run)]
        if not writers:
            turns.read = turns.write = 0.0
            return self._read(state, now)
        if turns.read > turns.write:
            works = state.write()
            turns.write += self._seconds(works) / (100 - turns.share)
            return works or self._read(state, now)
        works = self._read(state, now)
        if not works:  # nobody waits, or there is no room
            turns.read = turns.write = 0.0
            return state.write()
        self._split(state, works, writers)
        turns.read += self._seconds(works) / turns.share
        return works

    def _read(self, state: ServeState, now: float) -> list[Work]:
        """Prompts in the order of their score. Who has begun can go on where nobody can begin."""
        queue: list[Running | Job] = [run for run in state.running.values() if run.left]
        queue += state.waiting if state.free_slots else ()
        left = [one.left if isinstance(one, Running) else state.length(one) for one in queue]
        jobs = [one.job if isinstance(one, Running) else one for one in queue]
        works, room, full = [], self.budget, False
        for i in shortest_first(left, [now - job.arrival for job in jobs], self.gamma):
            if min(left[i], self.budget) > room:
                break
            run = queue[i]
            if isinstance(run, Job):
                run = None if full else state.admit(run)
                full = run is None
            if run:
                works.append(state.rows(run, min(run.left, room)))
                room -= works[-1].count
        return works

    def _split(self, state: ServeState, works: Sequence[Work], writers: Sequence[Running]) -> None:
        reading = self._operators(works)
        writing = self._operators([Work(run, run.planned, 1, 0, state.num_layers) for run in writers])
        prefill = lambda percent: phase_split_plan.prefill_time(reading, percent / 100, self.device)
        decode = lambda percent: phase_split_plan.decode_time(writing, percent / 100, self.device, reading)
        turns, usage = state.memo, state.pages.used / state.pages.count
        turns.target = phase_split_plan.choose(prefill, decode, usage, turns.target, self.rule).prefill
        turns.share = phase_split_plan.settle(turns.share, turns.target, self.rule.delta)

    def _operators(self, works: Sequence[Work]) -> tuple[Operator, ...]:
        rows = sum(work.count for work in works)
        pairs = sum(work.count * (work.start + (work.count + 1) / 2) for work in works)
        return self.shape.operators(rows, pairs, sum(work.start + work.count for work in works))

    def _seconds(self, works: Sequence[Work]) -> float:
        """Of a step that has the whole device."""
        return phase_split_plan.prefill_time(self._operators(works), 1.0, self.device)


def _writes(run: Running) -> bool:
    return run.given <= run.planned < run.end


def shortest_first(left: Sequence[int], waited: Sequence[float], gamma: float) -> list[int]:
    """The order in which prompts are read.

    Args:
      left: tokens of each that are not read yet.
      waited: seconds since each arrived.
      gamma: tokens per second that waiting is worth; 0 = shortest first, very large = first come.
    """
    return sorted(range(len(left)), key=lambda i: left[i] - gamma * waited[i])
