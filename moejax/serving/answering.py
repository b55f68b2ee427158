"""Which way a job of requests is answered: by the engine, or group by group."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from moejax.serving.batch import Counts, answer, has_pages, sizes_for
from moejax.serving.generate import MAX_ROWS, complete
from moejax.serving.plan import Scheduler
from moejax.serving.schedulers.chunked import Chunked
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.schedulers.layered import Layered
from moejax.serving.schedulers.packing import Packing
from moejax.serving.schedulers.shared_prefix import SharedPrefix

if TYPE_CHECKING:
    from moejax.serving.batch_file import Job
    from moejax.serving.completion import Completion

WINDOW = 1024  # requests that are read before they are answered in groups; among these the order is free
FEW = 8  # requests that are answered in one group, whose steps have no more rows than that

# By name, a scheduler whose steps have at most so many rows.
SCHEDULERS: dict[str, Callable[[int], Scheduler]] = {
    "chunked": Chunked,
    "fcfs": Fcfs,
    "layered": lambda rows: Layered(unit=rows // 4, cap=rows // 2),
    "packing": Packing,
    "shared_prefix": SharedPrefix,
}
Answer = tuple["Job", "Completion | None"]


class Answering:
    """Answers jobs of `batch_file`.

    Args:
      rows: requests that are decoded together.
      total: jobs there are; None = not known.
      scheduler: a name of `SCHEDULERS`.
      exact: see `batch.sizes_for`.
      recorder: notes the routing of every token; the engine does not do that.
    """

    def __init__(
        self, model, rows: int, total: int | None, *, scheduler: str, exact: bool = False, recorder=None
    ):
        self._model, self._rows, self._recorder = model, rows, recorder
        self.counts: Counts | None = None  # of the engine
        few = total is not None and total <= FEW
        if has_pages(model) and recorder is None and (exact or not few):
            self.counts, self._sizes = Counts(), sizes_for(model, rows, exact)
            self._scheduler = SCHEDULERS[scheduler](self._sizes.rows[-1])
            parked = getattr(self._scheduler, "cap", 0)
            self._sizes = dataclasses.replace(self._sizes, num_parked=parked)

    def __call__(self, jobs: Iterator["Job"], expect: Callable[["Job"], None]) -> Iterator[Answer]:
        """Every job with its completion, None for a wrong one, in the order in which they are finished.

        Args:
          expect: is told of every job when it is read.
        """
        return (self._in_groups if self.counts is None else self._by_the_engine)(jobs, expect)

    def _by_the_engine(self, jobs, expect) -> Iterator[Answer]:
        asked, others = {}, collections.deque()

        def requests():
            number = itertools.count()
            for job in jobs:
                expect(job)
                if job.request is None or not self._fits(job):
                    others.append(job)
                else:
                    asked[next(number)] = job
                    yield job.request

        for i, completion in answer(self._model, requests(), self._scheduler, self._sizes, self.counts):
            yield asked.pop(i), completion
            yield from self._apart(others)
        yield from self._apart(others)

    def _fits(self, job) -> bool:
        """Whether the engine's cache could hold the request."""
        room = self._sizes.num_pages * self._sizes.page_size
        return len(job.request.tokens) + job.request.sampling.max_tokens - 1 <= room

    def _apart(self, others: collections.deque) -> Iterator[Answer]:
        """Wrong jobs, and requests that are too long for the engine, each for itself."""
        while others:
            job = others.popleft()
            if job.request is None:
                yield job, None
            else:
                yield from ((job, done) for _, done in complete(self._model, [job.request], 1))

    def _in_groups(self, jobs, expect) -> Iterator[Answer]:
        while window := list(itertools.islice(jobs, WINDOW)):
            for job in window:
                expect(job)
            yield from ((job, None) for job in window if job.request is None)
            good = [job for job in window if job.request is not None]
            rows = min(self._rows, MAX_ROWS)
            for i, completion in complete(self._model, [job.request for job in good], rows, self._recorder):
                yield good[i], completion
