"""Many requests through the engine, for whoever wants the most tokens per second."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

from moejax.model import stack
from moejax.serving import engine
from moejax.serving.completion import Completion, Writer
from moejax.serving.device import Device, Sizes
from moejax.serving.pages import Pages
from moejax.serving.plan import Scheduler
from moejax.serving.request import Request
from moejax.serving.state import Job, ServeState

WINDOW = 512  # requests that are looked at before there is room for them
POSITIONS = 512  # of the cache per slot; a longer request takes those of others
# On CPU a row of a product is summed alike, bit for bit, in any step of at least so many rows.
ALIKE_ROWS = 64


@dataclasses.dataclass
class Counts:
    """What a batch took."""

    steps: int = 0
    rows: int = 0  # that did something
    shared: int = 0  # positions that were found in the cache
    expert_loads: int = 0  # distinct experts per step and layer, summed


def sizes_for(model, num_slots: int) -> Sizes:
    """Sizes with which a request does not feel its batch mates.

    Args:
      model: a `moejax.Model`.
      num_slots: requests that run at once.
    """
    page = Sizes.page_size
    positions = max(model.context, num_slots * min(model.context, POSITIONS))
    least = max(ALIKE_ROWS, num_slots)
    return Sizes(num_slots, -(-positions // page), page, (least, 4 * least, 8 * least))


def has_pages(model) -> bool:
    """Whether the engine can serve the model: nothing but keys and values of attention is remembered."""
    blocks = [block for group in model.cfg.groups for block in group.blocks]
    only_attention = all("/attn/" in path for path, _ in stack.sp.leaves(stack.cache_specs(model.cfg, 1, 1)))
    return only_attention and not any(getattr(block.attn, "sinks", False) for block in blocks)


def answer(
    model, requests: Iterable[Request], scheduler: Scheduler, sizes: Sizes, counts: Counts | None = None
) -> Iterator[tuple[int, Completion]]:
    """(number of the request, its completion) in the order in which they are finished.

    Args:
      model: a `moejax.Model` that `has_pages`.
      requests: numbered from 0; read as there is room.
      scheduler: who is served when; it changes no text.
      sizes: of what is compiled and allocated; the cache must hold the longest request.
      counts: is added to.
    """
    counts = Counts() if counts is None else counts
    writers: dict[int, Writer] = {}
    empty: collections.deque[int] = collections.deque()

    def jobs() -> Iterator[Job]:
        for i, request in enumerate(requests):
            writers[i] = Writer(model.tokenizer, request)
            if request.sampling.max_tokens:
                yield Job(i, request.tokens, request.sampling.max_tokens, settings=request.sampling)
            else:
                empty.append(i)

    pages = Pages(sizes.num_pages, sizes.page_size)
    state = ServeState(sizes.num_slots, pages, model.cfg.num_layers, WINDOW)
    device = Device(model, sizes)
    ends = frozenset(model.tokenizer.ends if model.tokenizer else ())
    for step in engine.serve(jobs(), scheduler, device, state, ends):
        done = _written(step, state, writers)
        counts.steps += 1
        counts.rows += step.result.plan.num_rows
        counts.expert_loads += step.result.expert_loads
        counts.shared = state.found
        for i, ended in done.items():
            yield i, writers.pop(i).completion(ended)
        while empty:
            yield empty[0], writers.pop(empty.popleft()).completion(ended=False)
    while empty:
        yield empty[0], writers.pop(empty.popleft()).completion(ended=False)


def _written(step: engine.Step, state: ServeState, writers: dict[int, Writer]) -> dict[int, bool]:
    """Give the tokens of a step to their writers: requests that are done, and whether an end token came."""
    done = {job.id: reason == "stop" for job, reason in step.finished}
    for drawn in step.written:
        likelihood = () if drawn.likelihood is None else (drawn.likelihood,)
        if writers[drawn.job].add((drawn.token,), step.now, likelihood) and drawn.job not in done:
            done[drawn.job] = False
            state.finish(state.running[drawn.job])
    return done
