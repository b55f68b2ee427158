"""What a scheduler sees and changes: requests that wait, requests that run, and the pages they hold.

Host code without clock and without jax, so that every schedule can be replayed.
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from moejax.config import require
from moejax.serving.pages import Pages


@dataclasses.dataclass(frozen=True)
class Job:
    """A request as a scheduler knows it."""

    id: int
    prompt: tuple[int, ...]
    max_new: int  # tokens that may come, at most; at least 1
    arrival: float = 0.0  # seconds


@dataclasses.dataclass
class Running:
    """A job that has a slot."""

    job: Job
    slot: int
    visit: int  # number of the admission; tells this stay in a slot from an earlier one of the same job
    pages: list[int]
    text: list[int]  # prompt, and the tokens that are known to have come
    given: int  # tokens of the text that were there at admission
    shared: int  # positions that were found in the cache
    planned: int  # positions that steps were asked to write, found ones included

    @property
    def left(self) -> int:
        """Positions of the given text that no step was asked for."""
        return max(self.given - self.planned, 0)

    @property
    def asked(self) -> int:
        """Tokens that steps were asked for, those before this stay included."""
        return self.given - len(self.job.prompt) + max(self.planned - self.given + 1, 0)


class Work(NamedTuple):
    """Rows of one step: consecutive positions of one request through layers first to stop - 1."""

    run: Running
    start: int
    count: int
    first: int
    stop: int


class ServeState:
    """The one record of what is going on, shared by scheduler, engine and executor.

    Args:
      num_slots: requests that run at once, Q.
      pages: of the cache.
      num_layers: L.
    """

    def __init__(self, num_slots: int, pages: Pages, num_layers: int):
        require(num_slots >= 1, f"num_slots={num_slots} must be at least 1")
        self.num_slots, self.pages, self.num_layers = num_slots, pages, num_layers
        self.waiting: collections.deque[Job] = collections.deque()
        self.running: dict[int, Running] = {}  # by id of the job, in the order of admission
        self.memo: Any = None  # whatever the scheduler keeps between steps
        self._slots = list(range(num_slots - 1, -1, -1))
        self._visits = 0
        self._written: dict[int, list[int]] = {}  # of jobs that wait again

    def fits(self, job: Job) -> bool:
        """Whether the cache could ever hold the job."""
        return self.pages.needed(len(job.prompt) + job.max_new - 1) <= self.pages.count

    def admit(self, job: Job) -> Running | None:
        """Give a waiting job a slot and pages for its text; None if there is no room now."""
        if not self._slots:
            return None
        text = [*job.prompt, *self._written.get(job.id, ())]
        found = self.pages.find(text)
        more = self.pages.take(self.pages.needed(len(text)) - len(found))
        if more is None:
            self.pages.release(found)
            return None
        shared = len(found) * self.pages.size
        run = Running(job, self._slots.pop(), self._visits, found + more, text, len(text), shared, shared)
        self._visits += 1
        self.waiting.remove(job)
        self.running[job.id] = run
        return run

    def decodable(self) -> Iterator[Running]:
        """Requests whose next position is a written token's, earliest first, while more may come."""
        for run in list(self.running.values()):
            if run.job.id in self.running and not run.left and run.asked < run.job.max_new:
                yield run

    def rows(self, run: Running, count: int, first: int = 0, stop: int | None = None) -> Work:
        """The next `count` positions of a request, which from now on count as planned."""
        work = Work(run, run.planned, count, first, self.num_layers if stop is None else stop)
        run.planned += count
        return work

    def reserve(self, run: Running) -> bool:
        """Pages for the next position of `run`; takes them from the latest others, who wait again.

        Returns False if the latest was `run` itself.
        """
        missing = self.pages.needed(run.planned + 1) - len(run.pages)
        while (taken := self.pages.take(max(missing, 0))) is None:
            latest = max(self.running.values(), key=lambda other: other.visit)
            self.preempt(latest)
            if latest is run:
                return False
        run.pages += taken
        return True

    def preempt(self, run: Running) -> None:
        """Let a request wait again, first in the queue; what it wrote becomes part of what it reads."""
        self._leave(run)
        self._written[run.job.id] = run.text[len(run.job.prompt) :]
        self.waiting.appendleft(run.job)

    def finish(self, run: Running) -> None:
        """A request is done: its slot and pages are free."""
        self._leave(run)
        self._written.pop(run.job.id, None)

    def _leave(self, run: Running) -> None:
        del self.running[run.job.id]
        self.pages.release(run.pages)
        self._slots.append(run.slot)
