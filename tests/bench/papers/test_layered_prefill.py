"""Which steps count, on a schedule played by hand."""

import dataclasses

from moejax.bench.papers import layered_prefill
from moejax.bench.papers.layered_prefill import Loads, beside, loads
from moejax.serving.engine import serve
from moejax.serving.pages import Pages
from moejax.serving.schedulers.chunked import Chunked
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.schedulers.layered import Layered
from moejax.serving.simulated import Latency, Simulated
from moejax.serving.state import ServeState


class OneExpertEach:
    """As many experts as rows and layers."""

    def loads(self, works) -> float:
        return float(sum(work.count * (work.stop - work.first) for work in works))


def counted(scheduler) -> Loads:
    """A request writes while prompts of 8 are read in 4 layers; the first of two prompts does not count."""
    jobs = beside([(1,)], [(2,) * 8, (3,) * 8], steps=4)
    state = ServeState(2, Pages(64, 1, sharing=False), 4)
    executor = Simulated(Latency(fixed=1.0), 4, OneExpertEach())
    return loads((step.result for step in serve(jobs, scheduler, executor, state, ahead=0)), D=1)


def test_steps_that_count():
    """4 steps of 2 positions in 4 layers, or 8 in one, and each time a row that writes."""
    assert counted(Chunked(3)) == Loads(experts=4 * (2 + 1) * 4, steps=4, stalls=0)
    assert counted(Layered(unit=2)) == Loads(experts=4 * (8 + 4), steps=4, stalls=0)


def test_who_waits_is_noticed():
    """Whole prompts first: the request that writes gets no row while one is read."""
    assert counted(Fcfs(8)) == Loads(experts=8 * 4, steps=1, stalls=1)


def test_a_layer_for_every_group():
    for settings in layered_prefill.SIZES.values():
        run = layered_prefill.recipe(dataclasses.replace(settings))
        assert run.model.num_layers == settings.groups
