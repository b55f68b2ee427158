"""One step of the engine as columns of numbers: the only thing that an executor is told."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

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
    likelihood: Any = None  # of the token, if the request wants it


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
      UsageError: the works have more rows than that, or one is of a request that has no slot any more.
    """
    total = sum(work.count for work in works)
    require(total <= num_rows, f"a step of {num_rows} rows cannot take {total}; lower the scheduler's budget")
    gone = [work.run.job.id for work in works if state.running.get(work.run.job.id) is not work.run]
    require(not gone, f"requests {gone} are part of a step and have left their slots; write before you read")
    start_W, count_W, first_W, stop_W, slot_W, given_W, known_W = np.array(
        [(*work[1:], work.run.slot, work.run.given, len(work.run.text)) for work in works], np.int32
    ).reshape(-1, 7).T  # fmt: skip
    column = lambda x_W, fill=0: _padded(np.repeat(x_W, count_W), num_rows, fill)
    begin_W = np.cumsum(count_W) - count_W
    pos_J = np.arange(num_rows, dtype=np.int32) + column(start_W - begin_W)
    pos_J[total:] = 0
    first_J, stop_J = column(first_W), column(stop_W)
    source_J = np.where(first_J > 0, PARKED, np.where(pos_J < column(known_W, fill=1), TOKEN, LAST))
    return Plan(
        id=id,
        token_J=_tokens(works, num_rows),
        source_J=source_J.astype(np.int32),
        slot_J=column(slot_W, fill=-1),
        pos_J=pos_J,
        first_J=first_J,
        stop_J=stop_J,
        emit_J=(pos_J >= column(given_W, fill=1) - 1) & (stop_J == state.num_layers),
        page_QP=_page_table(state),
        works=tuple(works),
    )


def _padded(x_R: np.ndarray, num_rows: int, fill: int) -> np.ndarray:
    padded_J = np.full(num_rows, fill, np.int32)
    padded_J[: len(x_R)] = x_R
    return padded_J


def _tokens(works: Sequence[Work], num_rows: int) -> np.ndarray:
    tokens: list[int] = []
    for run, start, count, _, _ in works:
        known = run.text[start : start + count]
        tokens += known
        tokens += [0] * (count - len(known))
    return _padded(np.array(tokens, np.int32), num_rows, 0)


def _page_table(state: ServeState) -> np.ndarray:
    """A copy, because steps run while pages change hands; as wide as the longest request needs."""
    longest = max((len(run.pages) for run in state.running.values()), default=1)
    return state.page_QP[:, :longest].copy()
