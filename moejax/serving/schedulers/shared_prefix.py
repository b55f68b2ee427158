"""Global prefix sharing: prompts that begin alike are read one after another, and the beginning once.

BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and Throughput-oriented Token
Batching (2024, arXiv 2412.03594).
1. A tree of all waiting prompts. Only one level of sharing is used, the root's children; it is enlarged
   bottom up (`maximize_reuse`): for a child c of D, and a child g of c,
       gain = (leaves(g) - 1) tokens(g);  cost = tokens(c);  if gain > cost, g moves up to D with c's tokens.
2. Groups with few tokens to read come first, so that what they write overlaps the reading of later ones:
       R = 1 / (prefix + sum of suffixes), descending.
3. A step is filled up to `budget` tokens: writers, suffixes of begun groups, prefixes of new ones.
4. No limit on requests: a prompt begins if the cache then still has room, 1 - `memory` of it and a page for
   everyone who writes.
A group of s prompts, prefix P and suffixes d saves 1 - (P + s d) / (s (P + d)) of what is read.
Differs from the paper: pages are found by their text as soon as a step is to fill them (`state.admit`), so
order is all that a group needs, deeper levels are shared as well where they follow one another, and sharing
is in whole pages; a group that does not fit needs no cut, as its prefix is kept while a member runs.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from moejax.config import require
from moejax.serving.plan import Scheduler
from moejax.serving.state import ServeState, Work

Prompt = Sequence[int]


@dataclasses.dataclass(frozen=True)
class SharedPrefix(Scheduler):
    budget: int = 2048  # S_chunk, tokens of a step
    memory: float = 0.9  # M_threshold, share of the cache that admissions may fill

    def __post_init__(self):
        require(self.budget >= 1, f"scheduler.budget={self.budget} must be at least 1")
        require(0 < self.memory <= 1, f"scheduler.memory={self.memory} must be above 0 and at most 1")

    def start(self, state: ServeState) -> None:
        state.memo = None  # the last of the jobs that were brought into order

    def plan(self, state: ServeState, now: float) -> list[Work]:
        if state.waiting and state.waiting[-1] is not state.memo:
            jobs = list(state.waiting)
            groups = order_groups(
                prefix_groups([job.prompt for job in jobs]), [len(job.prompt) for job in jobs]
            )
            state.waiting.clear()
            state.waiting.extend(jobs[i] for group in groups for i in group.members)
            state.memo = state.waiting[-1]
        works = state.write()
        spare = int((1 - self.memory) * state.pages.count)
        return works + state.read(max(self.budget - len(works), 0), spare, each=1)


class Group(NamedTuple):
    """Prompts that share their first `length` tokens."""

    length: int
    members: tuple[int, ...]  # indices of the prompts


@dataclasses.dataclass
class Node:
    """Prompts that agree up to `end`; its own run of tokens begins where its parent's ends."""

    end: int
    children: list["Node"] = dataclasses.field(default_factory=list)
    prompts: list[int] = dataclasses.field(default_factory=list)  # indices of those that end here
    leaves: int = 0  # prompts at and below


def prefix_groups(prompts: Sequence[Prompt]) -> list[Group]:
    """Groups that share the most tokens with one level of sharing; every prompt is in one."""
    return groups_of(maximize_reuse(build_tree(prompts)))


def build_tree(prompts: Sequence[Prompt]) -> Node:
    """The compact tree of all prompts; neighbours in sorted order share a path as long as their prefix."""
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i], i))
    path = [Node(0)]
    before: Prompt = ()
    for index in order:
        prompt = prompts[index]
        common = _common(before, prompt)
        last = None
        while path[-1].end > common:
            last = path.pop()
        if path[-1].end < common:  # the last one to leave the path shares more than its parent: cut it
            node = Node(common, [last])
            path[-1].children[-1] = node
            path.append(node)
        if path[-1].end < len(prompt):
            path[-1].children.append(Node(len(prompt)))
            path.append(path[-1].children[-1])
        path[-1].prompts.append(index)
        before = prompt
    for node in _bottom_up(path[0]):
        node.leaves = len(node.prompts) + sum(child.leaves for child in node.children)
    return path[0]


def maximize_reuse(root: Node) -> Node:
    """Enlarge the first level of sharing, in place."""
    for node in _bottom_up(root):
        kept: list[Node] = []
        for child in node.children:
            tokens = child.end - node.end
            moved = [g for g in child.children if (g.leaves - 1) * (g.end - child.end) > tokens]
            gone = {id(g) for g in moved}
            child.children = [g for g in child.children if id(g) not in gone]
            child.leaves -= sum(g.leaves for g in moved)
            kept += [_shortened(child)] * (child.leaves > 0) + moved
        node.children = kept
    return root


def _shortened(node: Node) -> Node:
    """The node, or what is alone below it."""
    while not node.prompts and len(node.children) == 1:
        (node,) = node.children
    return node


def groups_of(root: Node) -> list[Group]:
    """The root's children, and prompts of no tokens."""
    groups = [Group(0, (index,)) for index in root.prompts]
    for child in root.children:
        groups.append(Group(child.end, tuple(i for node in _bottom_up(child) for i in node.prompts)))
    return groups


def order_groups(groups: Sequence[Group], lengths: Sequence[int]) -> list[Group]:
    """By R, descending; of equals the one with the earliest prompt."""
    read = lambda group: sum(lengths[i] for i in group.members) - saved(group)
    return sorted(groups, key=lambda group: (read(group), min(group.members)))


def saved(group: Group) -> int:
    """Tokens that nobody has to read again."""
    return (len(group.members) - 1) * group.length


def saving_ratio(groups: Sequence[Group], lengths: Sequence[int]) -> float:
    """Share of all tokens of the prompts that sharing saves."""
    return sum(map(saved, groups)) / sum(lengths)


def _bottom_up(root: Node) -> Iterator[Node]:
    """Every node after its children; without recursion, as a tree may be as deep as a prompt is long."""
    order, left = [], [root]
    while left:
        order.append(left.pop())
        left += order[-1].children
    return reversed(order)


def _common(a: Prompt, b: Prompt) -> int:
    """Length of the common beginning, by bisection with comparisons of slices."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
