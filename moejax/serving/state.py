"""What a scheduler sees and changes: requests that wait, requests that run, and the pages they hold.

Host code without clock and without jax, so that every schedule can be replayed.
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from moejax.config import require
from moejax.serving.pages import Pages


@dataclasses.dataclass(frozen=True)
class Job:
    """A request as a scheduler knows it."""

    id: int
    prompt: tuple[int, ...]
    max_new: int  # tokens that may come, at most; at least 1
    arrival: float = 0.0  # seconds
    settings: Any = None  # what an executor has to know besides; no scheduler looks at it


@dataclasses.dataclass(eq=False)
class Running:
    """A job that has a slot."""

    job: Job
    slot: int
    visit: int  # number of the admission; tells this stay in a slot from an earlier one of the same job
    pages: list[int]
    names: list[bytes]  # of the pages that the known text fills
    text: list[int]  # prompt, and the tokens that are known to have come
    given: int  # tokens of the text that were there at admission
    end: int  # positions that have to pass all layers; what the last token says is never read
    shared: int  # positions that were found in the cache
    planned: int  # positions that steps were asked to take through all layers, found ones included
    parked: int = 0  # positions after those that were taken through some layers,
    depth: int = 0  # namely so many
    public: int = 0  # pages that others can find

    @property
    def left(self) -> int:
        """Positions of the given text that no step was asked to take through all layers."""
        return max(self.given - self.planned, 0)


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
      most_waiting: requests that are looked at before there is room for them.
    """

    def __init__(self, num_slots: int, pages: Pages, num_layers: int, most_waiting: int = 1 << 30):
        require(num_slots >= 1, f"num_slots={num_slots} must be at least 1")
        self.num_slots, self.pages, self.num_layers = num_slots, pages, num_layers
        self.most_waiting = most_waiting
        self.waiting: collections.deque[Job] = collections.deque()
        self.running: dict[int, Running] = {}  # by id of the job, in the order of admission
        self.memo: Any = None  # whatever the scheduler keeps between steps
        self.page_QP = np.full((num_slots, 1), -1, np.int32)  # pages of every slot, in order; -1 = none
        self.found = 0  # positions that admissions found in the cache, in all
        self._slots = list(range(num_slots - 1, -1, -1))
        self._visits = 0
        self._written: dict[int, list[int]] = {}  # of jobs that wait again
        self._names: dict[int, list[bytes]] = {}  # of the pages of jobs that were considered

    @property
    def free_slots(self) -> int:
        """Requests that could begin to run, were there pages."""
        return len(self._slots)

    def fits(self, job: Job) -> bool:
        """Whether the cache could ever hold the job."""
        return self.pages.needed(len(job.prompt) + job.max_new - 1) <= self.pages.count

    def length(self, job: Job) -> int:
        """Positions of the text that a waiting job begins with: more than its prompt if it wrote before."""
        return len(job.prompt) + len(self._written.get(job.id, ()))

    def admit(self, job: Job, spare: int = 0) -> Running | None:
        """Give a waiting job a slot and pages for its text; None if there is no room now.

        Pages of other requests are found as soon as a step was asked to fill them, because steps run in
        order, and every layer of a step writes before it reads.

        Args:
          spare: pages that must stay available if others run.
        """
        if not self._slots:
            return None
        text = [*job.prompt, *self._written.get(job.id, ())]
        names = self._names.setdefault(job.id, [])
        if self.pages.sharing:
            self.pages.extend_names(names, text)
        # Not the last token's own page: somebody has to compute what follows it.
        found = self.pages.find(names[: (len(text) - 1) // self.pages.size])
        missing = self.pages.needed(len(text)) - len(found)
        roomy = not self.running or missing + spare <= self.pages.available
        more = self.pages.take(missing) if roomy else None
        if more is None:
            self.pages.release(found)
            return None
        return self._begin(job, found + more, text, len(found) * self.pages.size)

    def _begin(self, job: Job, pages: list[int], text: list[int], shared: int) -> Running:
        names = self._names.pop(job.id)
        end = len(job.prompt) + job.max_new - 1
        run = Running(job, self._slots.pop(), self._visits, [], names, text, len(text), end, shared, shared)
        run.public = shared // self.pages.size
        self.found += shared
        self._give(run, pages)
        self._visits += 1
        self.waiting.remove(job)
        self.running[job.id] = run
        return run

    def rows(self, run: Running, count: int, stop: int | None = None) -> Work:
        """The next `count` positions of a request, up to layer `stop`, which from now on count as planned.

        Positions that stop before the last layer are parked, and have to be taken on together.
        """
        stop = self.num_layers if stop is None else stop
        require(count == run.parked or not run.depth, f"{run.parked} positions are parked, not {count}")
        work = Work(run, run.planned, count, run.depth, stop)
        if stop < self.num_layers:
            run.parked, run.depth = count, stop
            return work
        run.parked = run.depth = 0
        run.planned += count
        if self.pages.sharing and run.planned // self.pages.size > run.public:
            self._publish(run)
        return work

    def _publish(self, run: Running) -> None:
        """Let others find the pages that are full, as far as their text is known."""
        self.pages.extend_names(run.names, run.text)
        full = min(run.planned // self.pages.size, len(run.names))
        for at in range(run.public, full):
            self.pages.publish(run.names[at], run.pages[at])
        run.public = full

    def write(self) -> list[Work]:
        """A row for every request whose next position is a written token's, earliest first.

        To be called before other work of the step: what it preempts must not be part of the step.
        """
        works = []
        for run in list(self.running.values()):
            writes = run.given <= run.planned < run.end and self.running.get(run.job.id) is run
            if writes and self.reserve(run):
                works.append(self.rows(run, 1))
        return works

    def read(self, room: int, spare: int = 0, each: int = 0) -> list[Work]:
        """Up to `room` positions of prompts, as `prompts` picks them."""
        return [self.rows(run, count) for run, count in self.prompts(room, spare, each)]

    def read_on(self, room: int) -> list[Work]:
        """Up to `room` positions of prompts that have begun, in order."""
        return [self.rows(run, count) for run, count in self._begun(room)]

    def prompts(self, room: int, spare: int = 0, each: int = 0) -> Iterator[tuple[Running, int]]:
        """Up to `room` positions of prompts: of those that have begun, then of those that wait, in order.

        Args:
          spare: pages that every admission leaves available,
          each: and as many for each request that runs already.
        """
        for run, count in self._begun(room):
            room -= count
            yield run, count
        while room and self.waiting:
            run = self.admit(self.waiting[0], spare + each * len(self.running))
            if run is None:
                break
            count = min(run.left, room)
            room -= count
            yield run, count

    def _begun(self, room: int) -> Iterator[tuple[Running, int]]:
        for run in list(self.running.values()):
            if run.left and room:
                count = min(run.left, room)
                room -= count
                yield run, count

    def reserve(self, run: Running) -> bool:
        """Pages for the next position of `run`; takes them from the latest others, who wait again.

        Returns False if the latest was `run` itself.
        """
        missing = self.pages.needed(run.planned + 1) - len(run.pages)
        if missing <= 0:
            return True
        while (taken := self.pages.take(missing)) is None:
            latest = next(reversed(self.running.values()))
            self.preempt(latest)
            if latest is run:
                return False
        self._give(run, taken)
        return True

    def preempt(self, run: Running) -> None:
        """Let a request wait again, first in the queue; what it wrote becomes part of what it reads."""
        self._leave(run)
        self._written[run.job.id] = run.text[len(run.job.prompt) :]
        self._names[run.job.id] = run.names
        self.waiting.appendleft(run.job)

    def finish(self, run: Running) -> None:
        """A request is done: its slot and pages are free."""
        self._leave(run)
        self._written.pop(run.job.id, None)

    def _give(self, run: Running, pages: list[int]) -> None:
        start, stop = len(run.pages), len(run.pages) + len(pages)
        if stop > (width := self.page_QP.shape[1]):
            self.page_QP = np.pad(
                self.page_QP, ((0, 0), (0, max(stop, 2 * width) - width)), constant_values=-1
            )
        self.page_QP[run.slot, start:stop] = pages
        run.pages += pages

    def _leave(self, run: Running) -> None:
        del self.running[run.job.id]
        self.page_QP[run.slot] = -1
        self.pages.release(run.pages)
        self._slots.append(run.slot)
