"""Global prefix sharing: the worked tree, the closed form, and what is read of shared prompts."""

import itertools
import random

import pytest

from moejax.errors import UsageError
from moejax.serving.schedulers.chunked import Chunked
from moejax.serving.schedulers.shared_prefix import (
    Group,
    SharedPrefix,
    build_tree,
    groups_of,
    order_groups,
    prefix_groups,
    saved,
    saving_ratio,
)
from moejax.serving.state import Job
from tests.serving import toy

SIX = ["aaaaa1", "b" + "c" * 8 + "2", "b" + "c" * 8 + "3", "bddd4", "bddd5", "b6666"]


def total(groups) -> int:
    return sum(map(saved, groups))


def all_levels(prompts) -> int:
    """Tokens saved if every node of the tree is read once."""
    return sum(map(len, prompts)) - len({p[:end] for p in prompts for end in range(1, len(p) + 1)})


def best_single_level(prompts) -> int:
    """By brute force over partitions: each part shares its longest common prefix."""
    if not prompts:
        return 0
    first, rest = prompts[0], prompts[1:]
    best = 0
    for size in range(len(rest) + 1):
        for chosen in itertools.combinations(range(len(rest)), size):
            part = [first, *(rest[i] for i in chosen)]
            common = next((n for n, c in enumerate(zip(*part, strict=False)) if len(set(c)) > 1), None)
            common = min(map(len, part)) if common is None else common
            others = [rest[i] for i in range(len(rest)) if i not in chosen]
            best = max(best, size * common + best_single_level(others))
    return best


def test_the_worked_example():
    assert sum(map(len, SIX)) == 41
    assert total(groups_of(build_tree(SIX))) == 4
    groups = prefix_groups(SIX)
    assert {(group.length, frozenset(group.members)) for group in groups} == {
        (6, frozenset([0])),
        (9, frozenset([1, 2])),
        (4, frozenset([3, 4])),
        (5, frozenset([5])),  # alone, it is its own prefix
    }
    assert total(groups) == best_single_level(SIX) == 13 and all_levels(SIX) == 15
    ratios = [saving_ratio(found, list(map(len, SIX))) for found in (groups_of(build_tree(SIX)), groups)]
    assert ratios == pytest.approx([0.098, 0.317], abs=5e-4)


def random_tree(rng: random.Random) -> list[str]:
    """3 to 7 prompts of three levels; a part's letter tells it from its siblings."""
    part = lambda: rng.choice("abc") * rng.randrange(1, 6)
    tops = [part() for _ in range(2)]
    middles = [rng.choice(tops) + part() for _ in range(3)]
    return [rng.choice(middles) + part() for _ in range(rng.randrange(3, 8))]


def test_nearly_the_best_single_level():
    rng, found, best = random.Random(0), 0, 0
    for _ in range(40):
        prompts = random_tree(rng)
        groups = prefix_groups(prompts)
        assert sorted(i for group in groups for i in group.members) == list(range(len(prompts)))
        for group in groups:
            assert len({prompts[i][: group.length] for i in group.members}) == 1
        assert total(groups) <= best_single_level(prompts) <= all_levels(prompts)
        found, best = found + total(groups), best + best_single_level(prompts)
    assert found > 0.98 * best


@pytest.mark.parametrize(
    ("prefix", "suffix", "degree", "ratio"),
    [
        (2000, 200, 4, 0.6818),
        (2000, 200, 16, 0.8523),
        (2000, 1000, 16, 0.6250),
        (1000, 1000, 16, 0.4688),
        (16000, 200, 16, 0.9259),
    ],
)
def test_the_closed_form(prefix, suffix, degree, ratio):
    prompts = [(0,) * prefix + (1 + member,) * suffix for member in range(degree)]
    groups = prefix_groups(prompts)
    assert [group.length for group in groups] == [prefix]
    assert saving_ratio(groups, list(map(len, prompts))) == pytest.approx(ratio, abs=5e-5)


def test_prompts_that_are_equal_empty_or_beginnings_of_others():
    assert prefix_groups([(1, 2), (1, 2), (1, 2)]) == [Group(2, (0, 1, 2))]
    assert prefix_groups([]) == []
    (group,) = prefix_groups([(1,), (1, 2), (1, 2, 3)])
    assert group.length == 1 and sorted(group.members) == [0, 1, 2]


def test_a_tree_as_deep_as_its_prompts():
    prompts = [(0,) * length for length in range(1, 1500)]
    assert sorted(i for group in prefix_groups(prompts) for i in group.members) == list(range(1499))


def test_groups_with_little_to_read_come_first():
    """40 tokens shared by two read 40, 3 alone reads 3, and 40 is less than 41."""
    groups = [Group(41, (0,)), Group(40, (1, 2)), Group(3, (3,))]
    assert order_groups(groups, [41, 40, 40, 3]) == [groups[2], groups[1], groups[0]]


def shuffled(documents: int, degree: int, prefix: int, suffix: int) -> list[Job]:
    rng = random.Random(0)
    texts = [[rng.randrange(50) for _ in range(prefix)] for _ in range(documents)]
    prompts = [text + [rng.randrange(50) for _ in range(suffix)] for text in texts for _ in range(degree)]
    rng.shuffle(prompts)
    return [Job(id, tuple(prompt), 3) for id, prompt in enumerate(prompts)]


def read(steps) -> int:
    """Positions of prompts that steps were asked for."""
    works = (work for step in steps for work in step.result.plan.works)
    return sum(max(min(work.count, work.run.given - work.start), 0) for work in works)


def test_every_prefix_is_read_once():
    """8 documents of 64 with 6 questions of 16 each; the cache holds 2 of them, and who serves in the order
    of arrival reads nearly everything."""
    jobs = shuffled(documents=8, degree=6, prefix=64, suffix=16)
    logical = sum(len(job.prompt) for job in jobs)
    setup = toy.Setup(slots=4, pages=60)
    grouped = read(toy.simulate(jobs, SharedPrefix(budget=32), setup))
    assert grouped == 8 * (64 + 6 * 16)
    arrival = read(toy.simulate(jobs, Chunked(budget=32), setup))
    unshared = read(toy.simulate(jobs, Chunked(budget=32), toy.Setup(slots=4, pages=60, sharing=False)))
    assert unshared == logical and arrival > 1.6 * grouped


def test_memory_is_the_limit():
    """12 pages, 3 requests of 3 pages: at 0.5 the second would leave too few."""
    jobs = [Job(id, tuple(range(20 * id, 20 * id + 12)), 2) for id in range(3)]
    setup = toy.Setup(slots=3, pages=12, ahead=0)
    assert list(toy.table(toy.run(jobs, SharedPrefix(memory=1.0), setup))[0]) == [0, 1, 2]
    assert list(toy.table(toy.run(jobs, SharedPrefix(memory=0.5), setup))[0]) == [0]


@pytest.mark.parametrize(("settings", "name"), [({"budget": 0}, "budget=0"), ({"memory": 0.0}, "memory=0.0")])
def test_impossible_settings(settings, name):
    with pytest.raises(UsageError, match=f"scheduler.{name}"):
        SharedPrefix(**settings)
