"""One step of the engine as columns of numbers: the only thing that an executor is told."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from moejax.config import require
from moejax.serving.state import Job, ServeState, Work

# Where a row's input comes from.
TOKEN, LAST, PARKED = 0, 1, 2  # the plan's token | what the slot wrote last | what left the layer before


@dataclasses.dataclass(frozen=True)
class Plan:
    """Columns over J flat rows, in the order of their requests' work; rows beyond the last work are idle.

    A row passes layers first to stop - 1 and writes its position there. A row that stops before the last
    layer is parked, and goes on in a later plan from where it stopped.
    """

    id: int
    token_J: np.ndarray  # i32
    source_J: np.ndarray  # i32: TOKEN, LAST or PARKED
    slot_J: np.ndarray  # i32; -1 = idle
    pos_J: np.ndarray  # i32
    first_J: np.ndarray  # i32
    stop_J: np.ndarray  # i32
    emit_J: np.ndarray  # bool; a token is drawn from what follows the row
    page_QP: np.ndarray  # i32; pages of every slot, in order; -1 = none
    works: tuple[Work, ...]  # what the rows are made of

    @property
    def num_rows(self) -> int:
        """Rows that are not idle."""
        return sum(work.count for work in self.works)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A token that a step wrote."""

    job: int
    visit: int
    token: int
    logprob: float = 0.0  # nats


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a plan."""

    plan: Plan
    drawn: tuple[Drawn, ...]
    seconds: float  # that the step took
    expert_loads: int = 0  # distinct experts that rows met, summed over layers


class Scheduler(Protocol):
    """Who gets how many positions of the next step, in which layers. It admits, and never sees a token.

    A scheduler may change time, never text.
    """

    def start(self, state: ServeState) -> None:
        """Put what it keeps between steps into `state.memo`; most keep nothing."""

    def plan(self, state: ServeState, now: float) -> list[Work]:
        """The work of the next step; empty only if nothing can be done."""


class Executor(Protocol):
    """Runs plans, in order. `submit` may return before the step is done; `collect` waits for the oldest."""

    def rows(self, count: int) -> int:
        """Rows of the smallest step that takes so many; few sizes, as each is compiled."""

    def begin(self, job: Job, slot: int) -> None:
        """A job has got a slot."""

    def submit(self, plan: Plan) -> None: ...

    def collect(self) -> Result: ...

    def now(self) -> float:
        """Seconds since the executor was made."""

    def wait(self, until: float) -> None:
        """Nothing can be done before that time."""


def make_plan(id: int, works: Sequence[Work], state: ServeState, num_rows: int) -> Plan:
    """The columns of `works` in a step of `num_rows` rows.

    Raises:
      UsageError: the works have more rows than that.
    """
    total = sum(work.count for work in works)
    require(total <= num_rows, f"a step of {num_rows} rows cannot take {total}; lower the scheduler's budget")
    column = lambda fill, dtype=np.int32: np.full(num_rows, fill, dtype)
    plan = Plan(
        id, column(0), column(TOKEN), column(-1), column(0), column(0), column(0), column(False, bool),
        _page_table(state), tuple(works),
    )  # fmt: skip
    at = 0
    for work in works:
        _fill(plan, slice(at, at + work.count), work, state.num_layers)
        at += work.count
    return plan


def _fill(plan: Plan, rows: slice, work: Work, num_layers: int) -> None:
    run, positions = work.run, np.arange(work.start, work.start + work.count)
    known = run.text[work.start : work.start + work.count]
    plan.token_J[rows][: len(known)] = known
    source = np.where(positions < len(run.text), TOKEN, LAST)
    plan.source_J[rows] = source if work.first == 0 else PARKED
    plan.slot_J[rows], plan.pos_J[rows] = run.slot, positions
    plan.first_J[rows], plan.stop_J[rows] = work.first, work.stop
    plan.emit_J[rows] = (positions >= run.given - 1) & (work.stop == num_layers)


def _page_table(state: ServeState) -> np.ndarray:
    longest = max((len(run.pages) for run in state.running.values()), default=0)
    table_QP = np.full((state.num_slots, max(longest, 1)), -1, np.int32)
    for run in state.running.values():
        table_QP[run.slot, : len(run.pages)] = run.pages
    return table_QP
