"""A model in miniature on paged memory: what it writes depends on all that a row reads, in every layer.

So text tells whether pages, plans and layer windows were right, as it would with a real model.
"""

import dataclasses

import numpy as np

from moejax.serving.engine import serve
from moejax.serving.pages import Pages
from moejax.serving.plan import LAST, PARKED, Executor, Plan, Result
from moejax.serving.simulated import Latency, Simulated
from moejax.serving.state import Job, ServeState

VOCAB = 50
LATENCY = Latency(fixed=0.01, row=0.001)


def _next(value: int) -> int:
    return (value * 0x9E3779B97F4A7C15 % 2**64 >> 40) % VOCAB


def _weights(count: int) -> np.ndarray:
    return np.cumprod(np.full(count, 0x5851F42D4C957F2D, np.uint64))


def text_of(job: Job, ends: frozenset[int] = frozenset()) -> list[int]:
    """What the model writes, computed from the whole text each time."""
    text = list(job.prompt)
    while len(text) < len(job.prompt) + job.max_new:
        cells = np.array(text, np.uint64) + np.uint64(1)
        token = _next(int((cells * _weights(len(text))).sum()))
        if token in ends:
            break
        text.append(token)
    return text[len(job.prompt) :]


class Toy(Executor):
    """Runs plans; `Simulated` keeps the clock and watches that requests go on from where they stood."""

    def __init__(self, state: ServeState, latency: Latency = LATENCY, **options):
        self.size, num_layers = state.pages.size, state.num_layers
        self.clock = Simulated(latency, num_layers, **options)
        self.token_C = np.full(state.pages.count * self.size, 10**6, np.uint64)  # cells; nonsense at first
        self.depth_C = np.zeros(len(self.token_C), int)
        self.last, self.parked = {}, {}
        self.rows, self.now, self.wait = self.clock.rows, self.clock.now, self.clock.wait
        self.plans: list[Plan] = []
        self.drawn = []

    def begin(self, job: Job, slot: int) -> None:
        self.last.pop(slot, None)

    def submit(self, plan: Plan) -> None:
        self.clock.submit(plan)
        self.plans.append(plan)
        rows = np.flatnonzero(plan.slot_J >= 0)
        for j in rows:
            self._write(plan, j)
        self.drawn.append([self._read(plan, j) for j in rows if plan.emit_J[j]])
        emitting = [j for j in rows if plan.emit_J[j]]
        self.last |= {int(plan.slot_J[j]): token for j, token in zip(emitting, self.drawn[-1], strict=True)}

    def collect(self) -> Result:
        result, tokens = self.clock.collect(), self.drawn.pop(0)
        drawn = zip(result.drawn, tokens, strict=True)
        return dataclasses.replace(
            result, drawn=tuple(dataclasses.replace(known, token=token) for known, token in drawn)
        )

    def _cells(self, plan: Plan, j: int) -> np.ndarray:
        """Where the positions up to a row's own are."""
        position = np.arange(plan.pos_J[j] + 1)
        pages = plan.page_QP[plan.slot_J[j]][position // self.size]
        assert (pages >= 0).all(), "a position without a page"
        return pages * self.size + position % self.size

    def _write(self, plan: Plan, j: int) -> None:
        place, cell = (int(plan.slot_J[j]), int(plan.pos_J[j])), self._cells(plan, j)[-1]
        if plan.source_J[j] == PARKED:
            token, depth = self.parked.pop(place)
            assert depth == plan.first_J[j], "a row that goes on from another layer"
        else:
            token = self.last[place[0]] if plan.source_J[j] == LAST else plan.token_J[j]
        self.token_C[cell], self.depth_C[cell] = token, plan.stop_J[j]
        if plan.stop_J[j] < self.clock.num_layers:
            self.parked[place] = (token, plan.stop_J[j])

    def _read(self, plan: Plan, j: int) -> int:
        cells = self._cells(plan, j)
        seen = (self.token_C[cells] + np.uint64(1)) * (self.depth_C[cells] >= plan.stop_J[j])
        return _next(int((seen * _weights(len(cells))).sum()))


@dataclasses.dataclass
class Served:
    """What came of serving."""

    texts: dict[int, list[int]]
    steps: list
    plans: list[Plan]
    state: ServeState

    @property
    def finished(self) -> list[int]:
        return [job.id for step in self.steps for job, _ in step.finished]


@dataclasses.dataclass(frozen=True)
class Setup:
    """Where jobs are served."""

    slots: int = 4
    pages: int = 64
    page_size: int = 4
    layers: int = 4
    sharing: bool = True
    ends: frozenset[int] = frozenset()
    ahead: int = 1


def run(jobs, scheduler, setup: Setup = Setup(), **options) -> Served:
    """Serve `jobs` to their end; the options are the executor's."""
    state = ServeState(setup.slots, Pages(setup.pages, setup.page_size, setup.sharing), setup.layers)
    toy = Toy(state, **options)
    texts = {job.id: [] for job in jobs}
    steps = []
    for step in serve(jobs, scheduler, toy, state, setup.ends, setup.ahead):
        steps.append(step)
        for drawn in step.written:
            texts[drawn.job].append(drawn.token)
    return Served(texts, steps, toy.plans, state)


def table(served: Served) -> list[dict[int, int]]:
    """Rows of every request in every step."""
    return [{work.run.job.id: work.count for work in plan.works} for plan in served.plans]


def simulate(jobs, scheduler, setup: Setup, latency: Latency = LATENCY, **options) -> list:
    """The steps of serving `jobs` on the virtual clock alone; quicker than `run`, but no text is computed."""
    state = ServeState(setup.slots, Pages(setup.pages, setup.page_size, setup.sharing), setup.layers)
    executor = Simulated(latency, setup.layers, **options)
    return list(serve(jobs, scheduler, executor, state, setup.ends, setup.ahead))
