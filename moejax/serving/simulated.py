"""An executor that computes nothing: steps cost what a model of latency says, tokens are known in advance.

With it a schedule can be watched, tested and timed on any machine, and every figure repeats exactly.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from moejax.config import require
from moejax.serving.plan import Drawn, Executor, Plan, Result
from moejax.serving.state import Job, Work

_ODD = 0x9E3779B97F4A7C15  # multiplies without losing bits


class Cost(NamedTuple):
    """What a step does. Rows and keys count by the share of the layers that they pass."""

    steps: float  # 1
    rows: float  # idle ones included
    experts: float  # distinct ones that rows meet, summed over layers
    keys: float  # positions that are read from the cache; rows of one request read them together
    pairs: float  # of a row and a key


@dataclasses.dataclass(frozen=True)
class Latency:
    """Seconds of a step, as a sum over what it does."""

    fixed: float = 0.0  # per step
    row: float = 0.0
    expert: float = 0.0  # per expert whose weights are loaded
    key: float = 0.0
    pair: float = 0.0

    def __post_init__(self):
        times = dataclasses.astuple(self)
        require(min(times) >= 0 < max(times), f"{self} must have no time below 0 and one above")

    def seconds(self, cost: Cost) -> float:
        times = (self.fixed, self.row, self.expert, self.key, self.pair)  # `astuple` copies, once per step
        return sum(time * number for time, number in zip(times, cost, strict=True))


def fit(results: Sequence[Result], num_layers: int) -> Latency:
    """The latency that comes closest to measured steps, in relative squares, with no time below 0."""
    require(len(results) > 0, "there are no steps to fit a latency to")
    seconds = np.array([result.seconds for result in results])
    costs = np.array([cost_of(result.plan, result.expert_loads, num_layers) for result in results])
    costs = costs / seconds[:, None]
    scale = np.maximum(costs.max(0), 1e-30)
    kept = np.flatnonzero(costs.max(0) > 0)
    while True:  # leave out what would have to be negative, the worst first
        times, *_ = np.linalg.lstsq((costs / scale)[:, kept], np.ones(len(seconds)), rcond=None)
        if times.min() >= 0:
            break
        kept = np.delete(kept, times.argmin())
    found = np.zeros(costs.shape[1])
    found[kept] = times / scale[kept]
    return Latency(*found.tolist())


def cost_of(plan: Plan, experts: float, num_layers: int) -> Cost:
    """What a plan does, if its rows meet so many experts."""
    rows, keys, pairs = float(len(plan.slot_J) - plan.num_rows), 0.0, 0.0
    for _, start, count, first, stop in plan.works:
        share = (stop - first) / num_layers
        rows += share * count
        keys += share * (start + count)
        pairs += share * count * (start + (count + 1) / 2)
    return Cost(1.0, rows, experts, keys, pairs)


class Routing(Protocol):
    """Which experts rows meet; it depends on nothing but the row's request and position."""

    def loads(self, works: Sequence[Work]) -> float:
        """Distinct experts that a step loads, summed over layers."""


class Dense(Routing):
    """No experts."""

    def loads(self, works: Sequence[Work]) -> float:
        return 0.0


class Table(Routing):
    """Routing of N tokens; position p of request r meets the experts of token r * stride + p, modulo N.

    Args:
      expert_NLK: of each token in each layer, as a trace records it or as `zipf` draws it.
      num_experts: E; an expert E is an empty slot.
      stride: between requests.
    """

    def __init__(self, expert_NLK: np.ndarray, num_experts: int, stride: int = 7919):
        N, L, _ = expert_NLK.shape
        words = -(-(num_experts + 1) // 64)
        bits_NLW = np.zeros((N, L, words), np.uint64)
        for word in range(words):
            here_NLK = (expert_NLK // 64 == word) & (expert_NLK < num_experts)
            bit_NLK = np.where(here_NLK, np.uint64(1) << (expert_NLK % 64).astype(np.uint64), np.uint64(0))
            bits_NLW[:, :, word] = np.bitwise_or.reduce(bit_NLK, axis=-1)
        self._bits_NLW, self._stride = bits_NLW, stride

    @classmethod
    def zipf(
        cls, num_layers: int, num_experts: int, k: int, power: float = 0.0, seed: int = 0, tokens: int = 4096
    ) -> "Table":
        """Independent tokens; the n-th expert of a layer is as popular as n ** -power; 0 is uniform."""
        require(1 <= k <= num_experts, f"k={k} must be from 1 to num_experts={num_experts}")
        rng = np.random.default_rng(seed)
        shape = (num_layers, num_experts)
        rank_LE = rng.permuted(np.broadcast_to(np.arange(1, num_experts + 1), shape), axis=1)
        # the largest of log p + Gumbel noise are a draw of k without replacement
        score_NLE = -power * np.log(rank_LE) + rng.gumbel(size=(tokens, *shape))
        return cls(np.argpartition(-score_NLE, k - 1, axis=-1)[:, :, :k], num_experts)

    def loads(self, works: Sequence[Work]) -> float:
        N, L, W = self._bits_NLW.shape
        met_LW = np.zeros((L, W), np.uint64)
        for first, stop in {(work.first, work.stop) for work in works}:
            alike = [work for work in works if (work.first, work.stop) == (first, stop)]
            index = np.concatenate([self._tokens(work) for work in alike]) % N
            met_LW[first:stop] |= np.bitwise_or.reduce(self._bits_NLW[index, first:stop], axis=0)
        return float(np.bitwise_count(met_LW).sum())

    def _tokens(self, work: Work) -> np.ndarray:
        start = work.run.job.id * self._stride + work.start
        return np.arange(start, start + work.count)


class Simulated(Executor):
    """Runs plans on a virtual clock.

    Args:
      latency: of a step.
      num_layers: L.
      routing: which experts rows meet.
      sizes: rows of the steps that exist, as if each were compiled; empty = any.
      vocab: tokens are below it.
    """

    def __init__(
        self,
        latency: Latency,
        num_layers: int,
        routing: Routing | None = None,
        sizes: Sequence[int] = (),
        vocab: int = 256,
    ):
        self.latency, self.num_layers, self.vocab = latency, num_layers, vocab
        self.routing, self.sizes = routing or Dense(), tuple(sorted(sizes))
        self._now = self._free_at = 0.0
        self._flying: collections.deque[tuple[Result, float]] = collections.deque()
        self._at: dict[int, tuple[int, int, int]] = {}  # by visit: position, layer, rows between layers

    def rows(self, count: int) -> int:
        if not self.sizes:
            return count
        require(count <= self.sizes[-1], f"a step has at most {self.sizes[-1]} rows, {count} were asked for")
        return next(size for size in self.sizes if size >= count)

    def begin(self, job: Job, slot: int) -> None:
        pass

    def token(self, job: int, position: int) -> int:
        """The token that stands at a position of a request's text, if the request wrote it."""
        mixed = (job * 0x100000001B3 + position + 1) * _ODD % 2**64
        return (mixed >> 29) * _ODD % 2**64 % self.vocab

    def submit(self, plan: Plan) -> None:
        drawn = []
        for work in plan.works:
            self._follow(work)
            run, end = work.run, work.start + work.count
            if work.stop == self.num_layers:
                for position in range(max(work.start, run.given - 1), end):
                    token = self.token(run.job.id, position + 1)
                    drawn.append(Drawn(run.job.id, run.visit, token))
        loads = self.routing.loads(plan.works)
        seconds = self.latency.seconds(cost_of(plan, loads, self.num_layers))
        self._free_at = max(self._free_at, self._now) + seconds
        self._flying.append((Result(plan, tuple(drawn), seconds, int(loads)), self._free_at))

    def _follow(self, work: Work) -> None:
        """Refuse rows that a model could not compute: what is before them is missing."""
        run = work.run
        position, layer, parked = self._at.get(run.visit, (run.shared, 0, 0))
        right = (work.start, work.first) == (position, layer) and (not layer or work.count == parked)
        require(
            right,
            f"request {run.job.id} brings {work.count} positions from {work.start} at layer {work.first}; "
            f"it stands at position {position}, layer {layer}" + (f", with {parked} parked" if layer else ""),
        )
        done = work.stop == self.num_layers
        self._at[run.visit] = (position + work.count, 0, 0) if done else (position, work.stop, work.count)

    def collect(self) -> Result:
        result, end = self._flying.popleft()
        self._now = max(self._now, end)
        return result

    def now(self) -> float:
        return self._now

    def wait(self, until: float) -> None:
        self._now = max(self._now, until)
