"""The loop that serves: plan, run, commit. It knows no model, no clock and no device; an executor does."""

import dataclasses
from collections.abc import Iterable, Iterator

from moejax.config import require
from moejax.serving.plan import Drawn, Executor, Result, Scheduler, make_plan
from moejax.serving.state import Job, Running, ServeState


@dataclasses.dataclass(frozen=True)
class Step:
    """What is known after a step."""

    result: Result
    written: tuple[Drawn, ...]  # tokens that are part of a text; the end token is not
    finished: tuple[tuple[Job, str], ...]  # with the reason: stop or length
    now: float  # seconds, by the executor's clock
    begun: tuple[Running, ...] = ()  # what has got a slot since the step before


def serve(
    jobs: Iterable[Job],
    scheduler: Scheduler,
    executor: Executor,
    state: ServeState,
    ends: frozenset[int] = frozenset(),
    ahead: int = 1,
) -> Iterator[Step]:
    """Run every job to its end.

    Args:
      jobs: in the order of their arrival; taken when their time has come.
      ends: tokens after which a text is over.
      ahead: steps that are submitted before the result of the one before them is looked at.

    Raises:
      UsageError: a job is larger than the whole cache, or the scheduler lets requests wait for nothing.
    """
    scheduler.start(state)
    arriving, flying, visits, number, begun = _Arrivals(jobs), 0, 0, 0, []
    while arriving.next or state.waiting or state.running or flying:
        for job in arriving.until(executor.now(), state.most_waiting - len(state.waiting)):
            _queue(job, state)
        works = scheduler.plan(state, executor.now())
        new = [run for run in state.running.values() if run.visit >= visits]
        for run in new:
            executor.begin(run.job, run.slot)
        visits, begun = max((run.visit + 1 for run in new), default=visits), begun + new
        if works:
            rows = executor.rows(sum(work.count for work in works))
            executor.submit(make_plan(number, works, state, rows))
            number, flying = number + 1, flying + 1
        if flying > ahead or (flying and not works):
            flying -= 1
            step = commit(executor.collect(), state, ends, executor.now())
            yield dataclasses.replace(step, begun=tuple(begun))
            begun = []
        elif not works:
            stuck = len(state.waiting) + len(state.running)
            require(stuck == 0, f"{scheduler} plans nothing while {stuck} requests wait for it")
            executor.wait(arriving.next.arrival)


class _Arrivals:
    """Jobs on their way, of which only the next one is looked at."""

    def __init__(self, jobs: Iterable[Job]):
        self._jobs = iter(jobs)
        self.next = next(self._jobs, None)

    def until(self, now: float, most: int) -> Iterator[Job]:
        while most > 0 and self.next is not None and self.next.arrival <= now:
            job, self.next = self.next, next(self._jobs, None)
            most -= 1
            yield job


def _queue(job: Job, state: ServeState) -> None:
    room = state.pages.count * state.pages.size
    require(
        state.fits(job),
        f"request {job.id} needs {len(job.prompt) + job.max_new - 1} positions, the whole cache has {room}; "
        "shorten it, or give the cache more pages",
    )
    state.waiting.append(job)


def commit(result: Result, state: ServeState, ends: frozenset[int], now: float) -> Step:
    """Note what a step wrote. Tokens of a request that has left its slot since then count for nothing."""
    written, finished = [], []
    for drawn in result.drawn:
        run = state.running.get(drawn.job)
        if run is None or run.visit != drawn.visit:
            continue
        if drawn.token in ends:
            finished.append((run.job, "stop"))
            state.finish(run)
            continue
        run.text.append(drawn.token)
        written.append(drawn)
        if len(run.text) - len(run.job.prompt) >= run.job.max_new:
            finished.append((run.job, "length"))
            state.finish(run)
    return Step(result, tuple(written), tuple(finished), now)
