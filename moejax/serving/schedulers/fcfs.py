"""First come, first served: whole prompts before anything else, as soon as there is room.

What vLLM did at first (Kwon et al. 2023, arXiv 2309.06180): if a waiting prompt fits, a step reads prompts
alone, and those that write wait for it; otherwise every request writes one token.
"""

import dataclasses

from moejax.config import require
from moejax.serving.plan import Scheduler
from moejax.serving.state import ServeState, Work


@dataclasses.dataclass(frozen=True)
class Fcfs(Scheduler):
    max_rows: int = 2048  # of a step; a longer prompt takes several

    def __post_init__(self):
        require(self.max_rows >= 1, f"scheduler.max_rows={self.max_rows} must be at least 1")

    def plan(self, state: ServeState, now: float) -> list[Work]:
        return state.read(self.max_rows) or state.write()
