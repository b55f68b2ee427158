"""Decoding on devices of its own: requests begin where another engine's prefill left them.

DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving (Zhong et
al. 2024, arXiv 2401.09670), section 4.3. Keys and values of a prompt stay with the engine that read it until
this one has a slot and pages for them; then they are fetched, and every step writes one token for each
request. The other engine runs any scheduler, on jobs of one token (`hand_off.read_prompts`); both know all
jobs.

Differs from the paper: where pages run out the latest request is read again later, by this engine, instead of
being swapped to the host's memory.
"""

import dataclasses
from typing import Protocol

from moejax.config import require
from moejax.serving.hand_off import PageStore, Parcel, digest
from moejax.serving.plan import Scheduler
from moejax.serving.state import Job, ServeState, Work


class Inbox(Protocol):
    """Where prompts arrive that were read elsewhere."""

    def take(self, wait: bool) -> Parcel | None:
        """The next one, None if there is none now; `wait` until there is."""


@dataclasses.dataclass
class _Memo:
    """What is kept between steps."""

    parcel: Parcel | None = None  # for which there was no room
    begun: set[int] = dataclasses.field(default_factory=set)  # jobs


@dataclasses.dataclass(frozen=True)
class Disaggregated(Scheduler):
    inbox: Inbox
    store: PageStore  # the executor
    max_rows: int = 1024  # of a step, where a text has to be read again

    def start(self, state: ServeState) -> None:
        state.memo = _Memo()

    def plan(self, state: ServeState, now: float) -> list[Work]:
        self._begin(state)
        works = state.write()
        return works + state.read_on(max(self.max_rows - len(works), 0))

    def _begin(self, state: ServeState) -> None:
        """Take in as many as there is room for: those that were sent back first."""
        memo = state.memo
        while state.waiting and state.waiting[0].id in memo.begun:
            if not state.admit(state.waiting[0]):
                return
        while state.waiting and state.free_slots:
            memo.parcel = memo.parcel or self.inbox.take(wait=not state.running)
            if not memo.parcel or not self._accept(memo.parcel, state):
                return
            memo.begun.add(memo.parcel.job)
            memo.parcel = None

    def _accept(self, parcel: Parcel, state: ServeState) -> bool:
        """Whether there was room. Afterwards the request is where it would be, had it been read here."""
        job = _job(parcel, state)
        if parcel.token < 0:
            state.waiting.remove(job)
            return True
        run = state.admit(job, spare=len(state.running))
        if run is None:
            return False
        known = run.shared // state.pages.size
        arrived = {name: x[known:] for name, x in parcel.pages.items()}
        self.store.write_pages(run.pages[known:], arrived)
        run.text.append(parcel.token)
        run.planned = run.shared = run.given
        return True


def _job(parcel: Parcel, state: ServeState) -> Job:
    job = next((job for job in state.waiting if job.id == parcel.job), None)
    require(
        job is not None and digest(job.prompt) == parcel.prompt,
        f"request {parcel.job} arrives with another prompt than here, or is not expected; "
        "give both engines the same requests",
    )
    require(
        all(len(x) == state.pages.needed(len(job.prompt)) for x in parcel.pages.values()),
        f"request {parcel.job} arrives with other than {state.pages.needed(len(job.prompt))} pages",
    )
    return job
