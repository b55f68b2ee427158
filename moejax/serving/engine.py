"""The loop that serves: plan, run, commit. It knows no model, no clock and no device; an executor does."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

from moejax.config import require
from moejax.serving.plan import Drawn, Executor, Plan, Result, Scheduler, make_plan
from moejax.serving.state import Job, ServeState


@dataclasses.dataclass(frozen=True)
class Step:
    """What is known after a step."""

    result: Result
    written: tuple[Drawn, ...]  # tokens that are part of a text; the end token is not
    finished: tuple[tuple[Job, str], ...]  # with the reason: stop or length
    now: float  # seconds, by the executor's clock


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
      jobs: in the order of their arrival; looked at when their time has come.
      ends: tokens after which a text is over.
      ahead: steps that are submitted before the result of the one before them is looked at.

    Raises:
      UsageError: a job is larger than the whole cache.
    """
    scheduler.start(state)
    arriving, flying, begun = collections.deque(jobs), 0, -1
    number = 0
    while arriving or state.waiting or state.running or flying:
        while arriving and arriving[0].arrival <= executor.now():
            _queue(arriving.popleft(), state)
        works = scheduler.plan(state, executor.now())
        for run in state.running.values():
            if run.visit > begun:
                executor.begin(run.job, run.slot)
        begun = max((run.visit for run in state.running.values()), default=begun)
        if works:
            rows = executor.rows(sum(work.count for work in works))
            executor.submit(make_plan(number, works, state, rows))
            number, flying = number + 1, flying + 1
        if flying > ahead or (flying and not works):
            flying -= 1
            yield commit(executor.collect(), state, ends, executor.now())
        elif not works:
            executor.wait(arriving[0].arrival)


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
    _publish(result.plan, state)
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


def _publish(plan: Plan, state: ServeState) -> None:
    """Let others find the pages that the step has filled in every layer."""
    for work in plan.works:
        run = state.running.get(work.run.job.id)
        if run is work.run and work.stop == state.num_layers:
            state.pages.publish(run.text[: work.start + work.count], run.pages)
