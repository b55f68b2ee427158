"""The executor that computes: plans as columns of few sizes, the next one begun before the last is read."""

import collections
import dataclasses
import time

import jax
import numpy as np

from moejax import sharding
from moejax.config import require
from moejax.model import shared
from moejax.ops.sampling import SamplingRows
from moejax.serving import step as one_step
from moejax.serving.causal import causal
from moejax.serving.completion import Likelihood
from moejax.serving.model import Model
from moejax.serving.plan import Drawn, Executor, Plan, Result
from moejax.serving.request import Sampling
from moejax.serving.state import Job
from moejax.serving.unroll import unrolled


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of what is compiled and allocated."""

    num_slots: int = 64
    num_pages: int = 1024
    page_size: int = 16  # positions
    rows: tuple[int, ...] = (1, 16, 64, 256, 1024)  # of a step; a plan takes the smallest that holds it
    num_parked: int = 0  # rows that wait between layers, for layered schedulers

    def __post_init__(self):
        sizes = (self.num_slots, self.num_pages, self.page_size, *self.rows)
        require(len(self.rows) > 0 and min(sizes) >= 1, f"{self} has a size below 1")
        require(list(self.rows) == sorted(set(self.rows)), f"rows={self.rows} must grow")


class Device(Executor):
    """Runs plans of a model; the settings of its jobs are `request.Sampling`.

    Args:
      model: its form without dropped tokens is what runs.
      sizes: the cache has num_pages * page_size positions.
    """

    def __init__(self, model: Model, sizes: Sizes):
        self.model, self.sizes = unrolled(causal(model)), sizes
        m = self.model.cfg
        alone = sharding.out("BTD") is None
        require(alone, "a mesh is current, but the engine serves on one device; leave jax.set_mesh first")
        carried = ", ".join(shared.carry_specs(m))
        require(
            not (sizes.num_parked and carried),
            f"the model's tokens carry {carried} from layer to layer, so they cannot wait between layers; "
            "take a scheduler other than layered",
        )
        self.slot_pages = -(-model.context // sizes.page_size)
        self._served = one_step.start(
            m, sizes.num_slots, sizes.num_pages, sizes.page_size, max(sizes.num_parked, 1)
        )
        self._parking = _Parking(sizes.num_parked, self.slot_pages * sizes.page_size)
        self._flying: collections.deque = collections.deque()
        self._start = time.monotonic()
        self._done = self._start

    def rows(self, count: int) -> int:
        largest = self.sizes.rows[-1]
        require(count <= largest, f"a step has at most {largest} rows, {count} were asked for")
        return next(size for size in self.sizes.rows if size >= count)

    def begin(self, job: Job, slot: int) -> None:
        self._parking.forget(np.array([slot]))  # whoever had it before may have left between layers
        of: Sampling = job.settings
        rows = SamplingRows(
            temperature_B=np.float32(of.temperature),
            top_k_B=np.int32(min(of.top_k, self.model.cfg.vocab)),
            top_p_B=np.float32(of.top_p),
            seed_B=np.uint32(of.seed),
            min_p_B=np.float32(of.min_p),
        )
        self._served = one_step.begin(self._served, slot, rows)

    def submit(self, plan: Plan) -> None:
        page_QP = np.full((self.sizes.num_slots, self.slot_pages), -1, np.int32)
        used, wide = plan.page_QP.shape
        page_QP[:used, :wide] = plan.page_QP
        wanted = any(self._wanted(work.run.job) is not None for work in plan.works)
        columns = one_step.Columns(
            plan.token_J, plan.source_J, plan.slot_J, plan.pos_J, plan.first_J, plan.stop_J, plan.emit_J,
            self._parking.places(plan, self.model.cfg.num_layers), page_QP, np.asarray(wanted),
        )  # fmt: skip
        m, sides = self.model.cfg, self.model.sides
        self._served, written = one_step.step(
            self.model.params, sides, self._served, columns, m=m, page_size=self.sizes.page_size
        )
        self._flying.append((plan, written))

    def collect(self) -> Result:
        plan, written = self._flying.popleft()
        written = jax.tree.map(np.asarray, written)
        now = time.monotonic()
        seconds, self._done = now - self._done, now
        runs = [work.run for work in plan.works for _ in range(work.count)]
        drawn = tuple(
            Drawn(runs[row].job.id, runs[row].visit, int(token), self._likelihood(runs[row].job, written, at))
            for at, (row, token) in enumerate(zip(written.row_Y, written.token_Y, strict=True))
            if row < len(runs)
        )
        return Result(plan, drawn, seconds, int(written.load_L.sum()))

    def _wanted(self, job: Job) -> int | None:
        """How many likely tokens the request wants to know beside its own."""
        return job.settings.logprobs

    def _likelihood(self, job: Job, written: one_step.Written, at: int) -> Likelihood | None:
        most = self._wanted(job)
        return None if most is None else Likelihood.read(written.likelihoods, (at,), most)

    def now(self) -> float:
        return time.monotonic() - self._start

    def wait(self, until: float) -> None:
        time.sleep(max(until - self.now(), 0.0))


class _Parking:
    """Where rows that have passed some layers wait for the others.

    Args:
      room: rows that can wait; a row that does not wait has the place past the last one.
      length: positions that a slot can have.
    """

    def __init__(self, room: int, length: int):
        self._room, self._length = room, length
        self._row_X = np.full(max(room, 1), -1)  # slot * length + position; -1 = free

    def places(self, plan: Plan, num_layers: int) -> np.ndarray:
        """A place for every row that is parked or was; the same one from its first layer to its last."""
        self.forget(np.flatnonzero(plan.page_QP[:, 0] < 0))  # slots that have been left
        ends_J = plan.stop_J == num_layers
        waits_J = (plan.slot_J >= 0) & ((plan.first_J > 0) | ~ends_J)
        row_J = plan.slot_J * self._length + plan.pos_J
        new_N = row_J[waits_J & (plan.first_J == 0)]
        free_N = np.flatnonzero(self._row_X[: self._room] < 0)[: len(new_N)]
        full = f"more than num_parked={self._room} rows are between layers"
        require(len(free_N) == len(new_N), full)
        self._row_X[free_N] = new_N
        order_X = np.argsort(self._row_X)
        place_J = np.full(len(row_J), len(self._row_X), np.int32)
        place_J[waits_J] = order_X[np.searchsorted(self._row_X, row_J[waits_J], sorter=order_X)]
        self._row_X[place_J[waits_J & ends_J]] = -1
        return place_J

    def forget(self, slots: np.ndarray) -> None:
        """Rows of these slots do not go on."""
        self._row_X[np.isin(self._row_X // self._length, slots)] = -1
