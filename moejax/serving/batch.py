"""Many requests through the engine, for whoever wants the most tokens per second."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator

import jax.numpy as jnp

from moejax.model import stack
from moejax.ops.rope import LongRope
from moejax.serving import engine
from moejax.serving.completion import Completion, Writer
from moejax.serving.device import Device, Sizes
from moejax.serving.pages import Pages
from moejax.serving.plan import Scheduler
from moejax.serving.request import Request
from moejax.serving.state import Job, ServeState

WINDOW = 512  # requests that are looked at before there is room for them
POSITIONS = 512  # of the cache per slot; a longer request takes those of others
MOST_BYTES = 4 << 30  # of the cache, for the sake of one long request
LEAST_ROWS = 64  # of a step; fewer take as long on CPU


@dataclasses.dataclass
class Counts:
    """What a batch took."""

    steps: int = 0
    rows: int = 0  # that did something
    shared: int = 0  # positions that were found in the cache
    expert_loads: int = 0  # distinct experts per step and layer, summed


def sizes_for(model, num_slots: int, exact: bool = False) -> Sizes:
    """Sizes for so many requests at once.

    Args:
      model: a `moejax.Model`.
      num_slots: requests that run at once.
      exact: all steps have one number of rows, so that no bit of what a request gets depends on its batch
        mates, on chunks or on what was found in the cache. Otherwise steps of several sizes sum narrow
        products, those of routers, in several orders, and last digits may differ; reading is faster.
    """
    page = Sizes.page_size
    specs = stack.page_specs(model.cfg, 1, page)
    page_bytes = sum(
        math.prod(spec.shape) * jnp.dtype(spec.dtype).itemsize for _, spec in stack.sp.leaves(specs)
    )
    longest = min(model.context, MOST_BYTES // page_bytes * page)
    positions = max(longest, num_slots * min(longest, POSITIONS))
    least = max(LEAST_ROWS, num_slots)
    rows = (least,) if exact else (least, 4 * least, 8 * least)
    return Sizes(num_slots, -(-positions // page), page, rows)


def has_pages(model) -> bool:
    """Whether the engine can serve the model: nothing but keys and values of attention is remembered.

    Where rotary frequencies depend on the size of a request, requests of all sizes cannot share a step.
    """
    attns = [block.attn for group in model.cfg.groups for block in group.blocks]
    only_attention = all("/attn/" in path for path, _ in stack.sp.leaves(stack.cache_specs(model.cfg, 1, 1)))
    by_size = any(isinstance(getattr(attn, "rope_scaling", None), LongRope) for attn in attns)
    return only_attention and not by_size and not any(getattr(attn, "sinks", False) for attn in attns)


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
    for run in step.begun:
        writers[run.job.id].begins(run.shared)
    done = {job.id: reason == "stop" for job, reason in step.finished}
    for drawn in step.written:
        likelihood = () if drawn.likelihood is None else (drawn.likelihood,)
        if writers[drawn.job].add((drawn.token,), step.now, likelihood) and drawn.job not in done:
            done[drawn.job] = False
            state.finish(state.running[drawn.job])
    return done
