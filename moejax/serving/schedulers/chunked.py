"""Chunked prefill: nobody who writes waits for somebody who reads.

Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve (Agrawal et al. 2024, arXiv
2403.02310).
A step has a budget of tokens, tau. Every request that writes gets its row, unconditionally; what is left of
the budget reads prompts in chunks, those that have begun first, in the order of arrival:
    n = number of writers;  c_i = min(left_i, tau - n);  n += c_i
So the time between two tokens is at most that of a step of tau rows, while a chunk costs hardly more than
the writers alone as long as the weights' bytes are what a step waits for. tau is the most that keeps a step
within the time between tokens that is wanted (`profile_budget`).
Differs from the paper: where writers alone exceed tau, chunks shrink to nothing and not below; pages that a
prompt shares with earlier ones are not read again.
"""

import dataclasses
from collections.abc import Callable

from moejax.config import require
from moejax.serving.plan import Scheduler
from moejax.serving.state import ServeState, Work


@dataclasses.dataclass(frozen=True)
class Chunked(Scheduler):
    budget: int = 512  # tau, tokens of a step
    watermark: float = 0.01  # share of the pages that an admission leaves available

    def __post_init__(self):
        require(self.budget >= 1, f"scheduler.budget={self.budget} must be at least 1")
        inside = 0 <= self.watermark < 1
        require(inside, f"scheduler.watermark={self.watermark} must be at least 0 and below 1")

    def plan(self, state: ServeState, now: float) -> list[Work]:
        works = state.write()
        room = max(self.budget - len(works), 0)
        return works + state.read(room, spare=int(self.watermark * state.pages.count))


def profile_budget(seconds: Callable[[int], float], longest: float, tile: int = 128) -> int:
    """The largest tau whose steps take at most `longest` seconds.

    Args:
      seconds: of a step of so many tokens; grows with them.
      longest: the time between tokens that is wanted.
      tile: the budget is a multiple of it, unless it is smaller.

    Raises:
      UsageError: a step of one token takes longer.
    """
    require(seconds(1) <= longest, f"a step of 1 token takes {seconds(1):.3g} s, wanted are {longest:.3g} s")
    low, high = 1, 2
    while seconds(high) <= longest:
        low, high = high, 2 * high
        require(high < 2**24, f"steps of {low} tokens take {seconds(low):.3g} s: there is nothing to limit")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if seconds(middle) <= longest else (low, middle)
    return max(low - low % tile, min(low, tile))
