"""Prepacking: whole prompts of different lengths fill steps of a fixed size.

Prepacking: A Simple Method for Fast Prefilling and Increased Throughput in Large Language Models (2024, arXiv
2404.09529). k prompts padded to the longest, m, are k m rows; packed into r bins of m they are r m, and
    ceil(sum of lengths / m) <= r <= k
Best-fit decreasing: the longest first, each into the fullest bin that has room.
On flat rows nothing is padded to the longest prompt. What remains of the idea is the compiled step: it has a
fixed number of rows, and a bin is a step. Against taking whole prompts in the order of arrival, packing fills
more of each; against chunks, which fill every step, it reads no key twice and a prompt is read in one step.
Differs from the paper: a bin is a step and not a row of one; the mask is the cache's (a row sees its own
request), so there is nothing to unpack; all tokens of a prompt are packed, and its last one gives the first
token; a prompt longer than a bin is read in parts, in steps of its own.
"""

import dataclasses
from collections.abc import Sequence

from moejax.config import require
from moejax.serving.plan import Scheduler
from moejax.serving.state import Job, ServeState, Work


@dataclasses.dataclass(frozen=True)
class Packing(Scheduler):
    capacity: int = 1024  # rows of a step that reads; a size that is compiled

    def __post_init__(self):
        require(self.capacity >= 1, f"scheduler.capacity={self.capacity} must be at least 1")

    def start(self, state: ServeState) -> None:
        state.memo = []

    def plan(self, state: ServeState, now: float) -> list[Work]:
        return state.read_on(self.capacity) or self._read_bin(state) or state.write()

    def _read_bin(self, state: ServeState) -> list[Work]:
        """The next bin's prompts, those that find room; the rest of it is packed again."""
        waits = {job.id for job in state.waiting}
        bins = [kept for jobs in state.memo if (kept := [job for job in jobs if job.id in waits])]
        bins = bins or self._pack(state)
        works = []
        for job in bins.pop(0) if bins else ():
            run = state.admit(job)
            if run is None:
                bins = []
                break
            works.append(state.rows(run, min(run.left, self.capacity)))
        state.memo = bins
        return works

    def _pack(self, state: ServeState) -> list[list[Job]]:
        """Bins of the prompts for which there are slots, in the order of their earliest."""
        jobs = [job for job, _ in zip(state.waiting, range(state.free_slots), strict=False)]
        bins = pack([min(state.length(job), self.capacity) for job in jobs], self.capacity)
        return [[jobs[i] for i in sorted(indices)] for indices in sorted(bins, key=min)]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of the items of every bin; of equals the first.

    Raises:
      UsageError: an item is longer than a bin.
    """
    longest = max(lengths, default=0)
    require(
        longest <= capacity, f"a prompt of {longest} tokens does not fit into {capacity} rows; raise them"
    )
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        fitting = [b for b in range(len(bins)) if room[b] >= length]
        if not fitting:
            bins.append([])
            room.append(capacity)
        best = min(fitting, key=room.__getitem__) if fitting else -1
        bins[best].append(item)
        room[best] -= length
    return bins
