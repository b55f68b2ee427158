"""What every scheduler owes: a row in SCHEDULERS, and these promises. It may change time, never text."""

import ast
import collections
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax.analysis.phase_split_plan import Device, Shape
from moejax.errors import UsageError
from moejax.serving.pages import Pages
from moejax.serving.plan import Scheduler, make_plan
from moejax.serving.schedulers.chunked import Chunked
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.schedulers.layered import Layered
from moejax.serving.schedulers.packing import Packing
from moejax.serving.schedulers.phase_split import PhaseSplit
from moejax.serving.schedulers.shared_prefix import SharedPrefix
from moejax.serving.simulated import Latency
from moejax.serving.state import Job, ServeState, Work
from tests.house import tree
from tests.serving import toy


@dataclasses.dataclass(frozen=True)
class Row:
    """A scheduler and what it promises beyond what all do."""

    scheduler: Scheduler
    budget: int  # rows of a step, those that write not counted
    writers_count: bool = True  # against the budget
    never_stalls: bool = False  # who writes is part of every step


SHAPE = Shape(dense=100, expert=50, num_experts=4, k=2, kv_bytes=8, kv_flops=8)
SCHEDULERS = (
    Row(Fcfs(max_rows=16), 16),
    Row(Chunked(budget=8), 8, never_stalls=True),
    Row(Chunked(budget=1, watermark=0), 1, never_stalls=True),
    Row(Chunked(budget=10**6), 10**6, never_stalls=True),
    Row(Layered(unit=3, cap=16), 16, writers_count=False, never_stalls=True),
    Row(Layered(unit=2, cap=5), 5, writers_count=False, never_stalls=True),
    Row(Packing(capacity=8), 8),
    Row(Packing(capacity=32), 32),
    Row(PhaseSplit(SHAPE, Device(1e6, 1e5), budget=8), 8),
    Row(PhaseSplit(SHAPE, Device(1e6, 1e5, 0.5, 0.3), budget=32, gamma=1e9), 32),
    Row(SharedPrefix(budget=8), 8, never_stalls=True),
    Row(SharedPrefix(budget=64, memory=1.0), 64, never_stalls=True),
)
OF_TWO_ENGINES = {"Disaggregated"}  # needs another engine's pages: tests/serving/test_hand_off.py
every = pytest.mark.parametrize("row", SCHEDULERS, ids=lambda row: str(row.scheduler))


@st.composite
def mixes(draw) -> tuple[Job, ...]:
    """Up to 10 requests, many of which begin alike; some arrive late."""
    tokens = st.integers(0, 2)
    stems = draw(st.lists(st.lists(tokens, max_size=14), min_size=1, max_size=3))
    jobs, arrival = [], 0.0
    for id in range(draw(st.integers(1, 10))):
        prompt = (*draw(st.sampled_from(stems)), *draw(st.lists(tokens, min_size=1, max_size=8)))
        arrival += draw(st.sampled_from([0.0, 0.0, 0.03, 1.0]))
        jobs.append(Job(id, prompt, draw(st.integers(1, 9)), arrival))
    return tuple(jobs)


@st.composite
def setups(draw) -> toy.Setup:
    """Down to the smallest cache that holds any request of `mixes`, where room is made again and again."""
    size = draw(st.sampled_from([1, 2, 4]))
    pages = -(-30 // size) + draw(st.integers(0, 12))
    slots, ahead = draw(st.integers(1, 5)), draw(st.integers(0, 2))
    return toy.Setup(slots, pages, size, layers=3, sharing=draw(st.booleans()), ahead=ahead)


def check_text(jobs, served: toy.Served) -> None:
    """Every request finishes once, with the text that it has alone."""
    assert sorted(served.finished) == [job.id for job in jobs]
    assert served.texts == {job.id: toy.text_of(job) for job in jobs}


def check_pages(served: toy.Served) -> None:
    """Nobody holds anything at the end, and no page is lost."""
    state = served.state
    assert not state.running and not state.waiting
    assert state.pages.used == 0 and state.pages.available == state.pages.count
    assert state.free_slots == state.num_slots and (state.page_QP == -1).all()


def check_reading(jobs, served: toy.Served) -> None:
    """In every stay in a slot each position that was not found passes each layer once, in order."""
    stays = collections.defaultdict(list)
    for plan in served.plans:
        for work in plan.works:
            stays[work.run.visit].append(work)
    for works in stays.values():
        run, position, layer = works[0].run, works[0].run.shared, 0
        for work in works:
            assert (work.start, work.first) == (position, layer)
            layer = work.stop % served.state.num_layers
            position += 0 if layer else work.count
        assert position <= len(run.job.prompt) + run.job.max_new - 1
    first_stays = {}
    for works in stays.values():
        first_stays.setdefault(works[0].run.job.id, works[0].run)
    assert sorted(first_stays) == [job.id for job in jobs]


def check_budget(row: Row, served: toy.Served) -> None:
    """Reading keeps within the budget; those that write may exceed it alone."""
    for plan in served.plans:
        reads = sum(work.count for work in plan.works if work.start < work.run.given)
        writes = plan.num_rows - reads
        limit = row.budget - writes * row.writers_count
        assert reads <= max(limit, 0)


def check_stalls(served: toy.Served) -> None:
    """From its first token to its last a request has a row in every step, unless it lost its slot."""
    present = collections.defaultdict(list)
    for number, plan in enumerate(served.plans):
        for work in plan.works:
            if work.start + work.count >= work.run.given and work.stop == served.state.num_layers:
                present[work.run.visit].append(number)
    for numbers in present.values():
        assert numbers == list(range(numbers[0], numbers[-1] + 1))


@every
@settings(max_examples=20)
@given(jobs=mixes(), setup=setups())
def test_promises(row, jobs, setup):
    served = toy.run(jobs, row.scheduler, setup)
    check_text(jobs, served)
    check_pages(served)
    check_reading(jobs, served)
    check_budget(row, served)
    if row.never_stalls:
        check_stalls(served)


MIX = tuple(
    Job(id, tuple(range(40 - 3 * (id % 4))[: 8 + id]) + (id,), 3 + id % 5, 0.04 * (id // 3))
    for id in range(12)
)
TIGHT = toy.Setup(slots=6, pages=14, page_size=2, layers=4)


@every
def test_replay_is_equal(row):
    """The same plans at the same times, from the same strategy used twice."""
    first, second = (toy.run(MIX, row.scheduler, TIGHT) for _ in range(2))
    assert toy.table(first) == toy.table(second)
    assert [step.now for step in first.steps] == [step.now for step in second.steps]


@every
def test_room_is_made(row):
    """In the tight cache requests do lose their slots, or the promises above were kept too easily."""
    served = toy.run(MIX, row.scheduler, dataclasses.replace(TIGHT, sharing=False))
    stays = {work.run.visit for plan in served.plans for work in plan.works}
    check_text(MIX, served)
    assert len(stays) > len(MIX) or row.budget == 1, "of one token at a time nobody is in the other's way"


@every
def test_texts_that_begin_alike_are_read_once_where_there_is_room(row):
    """The first request has come through all layers before the others arrive."""
    jobs = [Job(id, (*range(16), 20 + id), 2, arrival=10.0 * (id > 0)) for id in range(4)]
    served = toy.run(jobs, row.scheduler, toy.Setup(pages=64, page_size=4))
    check_text(jobs, served)
    shared = {work.run.job.id: work.run.shared for plan in served.plans for work in plan.works}
    assert shared == {0: 0, 1: 16, 2: 16, 3: 16}


@every
def test_an_end_token(row):
    """Steps that are ahead of an end do no harm."""
    jobs = [dataclasses.replace(job, max_new=12) for job in MIX]
    ends = frozenset(toy.text_of(jobs[3])[4:5] + toy.text_of(jobs[7])[2:3])
    served = toy.run(jobs, row.scheduler, toy.Setup(slots=4, ends=ends, ahead=2))
    assert served.texts == {job.id: toy.text_of(job, ends) for job in jobs}
    assert any(len(text) < 12 for text in served.texts.values())
    check_pages(served)


class Cheat(Scheduler):
    """Does to a plan of `Chunked` what no scheduler may do."""

    def __init__(self, change):
        self.change = change

    def plan(self, state, now):
        works = Chunked(8).plan(state, now)
        return [self.change(work) for work in works]


@pytest.mark.parametrize(
    "change",
    [
        lambda work: work._replace(first=1) if work.start else work,
        lambda work: work._replace(stop=work.stop - 1) if work.start else work,
        lambda work: work._replace(count=max(work.count - 1, 1)),
        lambda work: work._replace(start=work.start + 1) if work.start else work,
    ],
    ids=["skips the first layer", "skips the last layer", "skips a position", "comes too late"],
)
def test_cheats_are_caught(change):
    with pytest.raises(UsageError, match=r"brings \d+ positions? from"):
        toy.run(MIX, Cheat(change))


def test_text_tells_a_layer_that_was_not_filled():
    """Without the watch: what a row reads is part of what it writes."""
    state = ServeState(1, Pages(8, 4), num_layers=2)
    executor = toy.Toy(state)
    executor.clock._follow = lambda work: None
    job = Job(0, (1, 2, 3), 2)
    state.waiting.append(job)
    run = state.admit(job)
    works = [Work(run, 0, 2, 0, 1)], [Work(run, 2, 1, 0, 2)]
    tokens = []
    for number, part in enumerate(works):
        executor.submit(make_plan(number, part, state, 4))
        tokens += [drawn.token for drawn in executor.collect().drawn]
    assert tokens != toy.text_of(job)[:1]


def test_every_scheduler_has_a_row():
    found = set()
    for path in tree.product():
        if path.startswith("moejax/serving/schedulers/"):
            nodes = [node for node in tree.parsed(path).body if isinstance(node, ast.ClassDef)]
            found |= {node.name for node in nodes if any(ast.unparse(b) == "Scheduler" for b in node.bases)}
    assert found - OF_TWO_ENGINES == {type(row.scheduler).__name__ for row in SCHEDULERS}


@every
def test_a_later_answer_and_the_same_one(row):
    """Ten times slower steps change who arrives when, and so the plans, and no text."""
    slow = toy.run(MIX, row.scheduler, latency=Latency(fixed=0.1, row=0.01))
    check_text(MIX, slow)
