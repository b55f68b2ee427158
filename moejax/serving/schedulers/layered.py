"""Layered prefill: prompts walk through groups of layers, one group a step, so that experts are loaded once.

From Tokens to Layers: Redefining Stall-Free Scheduling for LLM Serving with Layered Prefill (2025, arXiv
2510.08055). Chunks of c tokens walk a prompt of P tokens through all layers P / c times, and every time
nearly all experts are loaded. Instead a cohort of prompts, P new tokens in all, passes one of G groups of
layers in each step, while those that write pass all layers in every step:
    G(P) = max(1, ceil(P / unit)), at most L
With cov(n) the share of a layer's experts that n tokens meet and D writers, expert loads per layer are
    chunks: G E cov(c + D)    layers: E cov(P + D) + (G - 1) E cov(D)
Nobody who writes waits; writers are not charged against the cap. Prompts longer than the cap walk in parts.
Differs from the paper: G is never above L (the paper's groups would be empty); the authors' code rounds G up
in a table, which bounds what is compiled there and has no use here, where a layer window is data.
"""

import dataclasses
import itertools

from moejax.config import require
from moejax.serving.plan import Scheduler
from moejax.serving.state import Running, ServeState, Work


@dataclasses.dataclass
class Cohort:
    """Prompts that walk together."""

    parts: list[tuple[Running, int]]  # with their positions
    stops: list[int]  # last layers + 1 of the groups to come


@dataclasses.dataclass(frozen=True)
class Layered(Scheduler):
    unit: int = 512  # tokens of a cohort per group of layers
    cap: int = 8192  # tokens of a cohort

    def __post_init__(self):
        require(self.unit >= 1, f"scheduler.unit={self.unit} must be at least 1")
        require(self.cap >= 1, f"scheduler.cap={self.cap} must be at least 1")

    def start(self, state: ServeState) -> None:
        state.memo = Cohort([], [])

    def plan(self, state: ServeState, now: float) -> list[Work]:
        works, cohort = state.write(), state.memo
        cohort.parts = [(run, count) for run, count in cohort.parts if state.running.get(run.job.id) is run]
        if not cohort.parts or not cohort.stops:
            cohort = state.memo = self._gather(state)
        if cohort.parts:
            stop = cohort.stops.pop(0)
            works += [state.rows(run, count, stop) for run, count in cohort.parts]
        return works

    def _gather(self, state: ServeState) -> Cohort:
        """The next cohort: what is left of the last one's prompts, then those that wait."""
        parts = list(state.prompts(self.cap))
        tokens = sum(count for _, count in parts)
        groups = split_layers(state.num_layers, num_groups(tokens, self.unit, state.num_layers))
        return Cohort(parts, [stop for _, stop in groups])


def num_groups(tokens: int, unit: int, num_layers: int) -> int:
    """G(P)."""
    return min(max(1, -(-tokens // unit)), num_layers)


def split_layers(num_layers: int, groups: int) -> list[tuple[int, int]]:
    """First layer and last layer + 1 of every group: nearly even, larger ones first."""
    size, larger = divmod(num_layers, groups)
    starts = [size * group + min(group, larger) for group in range(groups + 1)]
    return list(itertools.pairwise(starts))
