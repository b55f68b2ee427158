"""Many requests through the engine: what `serve.py` and `moejax.generate` call."""

import dataclasses
from collections.abc import Iterator, Sequence

from moejax.serving import engine
from moejax.serving.completion import Completion, Writer
from moejax.serving.device import Device, Sizes
from moejax.serving.pages import Pages
from moejax.serving.plan import Scheduler
from moejax.serving.request import Request
from moejax.serving.state import Job, ServeState


@dataclasses.dataclass
class Counts:
    """What a batch took."""

    steps: int = 0
    rows: int = 0  # that did something
    shared: int = 0  # positions that were found in the cache
    expert_loads: int = 0  # distinct experts per step and layer, summed


def answer(
    model, requests: Sequence[Request], scheduler: Scheduler, sizes: Sizes, counts: Counts | None = None
) -> Iterator[tuple[int, Completion]]:
    """(index of the request, its completion) in the order in which they are finished.

    Args:
      model: a `moejax.Model` whose layers remember nothing but attention's keys and values.
      scheduler: who is served when; it changes no text.
      sizes: of what is compiled and allocated; the cache must hold the longest request.
      counts: is added to.
    """
    counts = Counts() if counts is None else counts
    writers = {i: Writer(model.tokenizer, request) for i, request in enumerate(requests)}
    jobs = [Job(i, request.tokens, request.sampling.max_tokens) for i, request in enumerate(requests)]
    device = Device(model, {i: request.sampling for i, request in enumerate(requests)}, sizes)
    state = ServeState(sizes.num_slots, Pages(sizes.num_pages, sizes.page_size), model.cfg.num_layers)
    ends = frozenset(model.tokenizer.ends if model.tokenizer else ())
    for step in engine.serve(jobs, scheduler, device, state, ends):
        counts.steps += 1
        counts.rows += step.result.plan.num_rows
        counts.expert_loads += step.result.expert_loads
        counts.shared = state.found
        done = {job.id: reason == "stop" for job, reason in step.finished}
        for drawn in step.written:
            likelihood = () if drawn.likelihood is None else (drawn.likelihood,)
            if writers[drawn.job].add((drawn.token,), step.now, likelihood) and drawn.job not in done:
                done[drawn.job] = False
                state.finish(state.running[drawn.job])
        for i, ended in done.items():
            yield i, writers.pop(i).completion(ended)
