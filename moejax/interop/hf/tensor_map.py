"""Parameters here, tensors there: both directions from one table.

A `Turn` says how a tensor of the other library is made from ours: "DHA->(HA)D" moves the dims into that order
and joins those in brackets, of which there may be none: "D->()D" is [1, D]. Nothing is computed, so there and
back is the same bits.
"""

import dataclasses
import fnmatch
import math
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from moejax import specs as sp
from moejax.errors import CheckpointError
from moejax.interop.source import TensorSource

MOST_TIMES = 10  # as many tensors as there are that a config may ask for before it is refused unread
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"  # some files of tied models have both
COMPARED = 1 << 24  # bytes of a tensor that are compared at once
REMEDY = "use the config.json that these tensors were made with"


@dataclasses.dataclass(frozen=True)
class Turn:
    """One tensor of the other library."""

    name: str  # there; {layer} and {expert} stand for numbers
    leaves: tuple[str, ...]  # here, as paths; several share the joined dim
    equation: str  # our dims, without layer and expert where the name has them -> theirs
    join: int = 0  # dim of theirs that several leaves share
    interleaved: bool = False  # there they take turns; otherwise they lie end to end

    def shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Of their tensor, out of the shapes of our leaves."""
        order, groups = self._read()
        theirs = [_joined([shape[dim] for dim in order], groups) for shape in shapes]
        whole = list(theirs[0])
        whole[self.join] = sum(shape[self.join] for shape in theirs)
        return tuple(whole)

    def forth(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Their tensor out of our leaves, in memory of its own."""
        order, groups = self._read()
        turned = [np.transpose(value, order) for value in values]
        turned = [x.reshape(_joined(x.shape, groups)) for x in turned]
        if self.interleaved:
            mixed = np.stack(turned, self.join + 1)
            return np.ascontiguousarray(mixed.reshape(self.shape([value.shape for value in values])))
        return np.ascontiguousarray(np.concatenate(turned, self.join))

    def back(
        self,
        read: Callable[[tuple[slice, ...]], np.ndarray],
        part: int,
        shapes: Sequence[tuple[int, ...]],
        wanted: Sequence[slice],
    ) -> np.ndarray:
        """A part of our leaf number `part`.

        Args:
          read: a part of their tensor, by one slice per dim.
          shapes: of all our leaves.
          wanted: of the leaf, one slice with start and stop per dim.
        """
        order, groups = self._read()
        sizes = [_joined([shape[dim] for dim in order], groups)[self.join] for shape in shapes]
        mine = [shapes[part][dim] for dim in order]
        wanted = [wanted[dim] for dim in order]
        theirs, inner, first = [], [], 0
        for size in groups:
            outer, *rest = wanted[first : first + size] or [slice(0, 1)]
            stride = math.prod(mine[first + 1 : first + size])
            theirs.append(slice(outer.start * stride, outer.stop * stride))
            inner += [slice(None), *rest][:size]
            first += size
        along = theirs[self.join]
        if self.interleaved:
            count = len(shapes)
            theirs[self.join] = slice(along.start * count, along.stop * count)
            picked = (slice(None),) * self.join + (slice(part, None, count),)
            block = read(tuple(theirs))[picked]
        else:
            offset = sum(sizes[:part])
            theirs[self.join] = slice(along.start + offset, along.stop + offset)
            block = read(tuple(theirs))
        block = block.reshape(_split(block.shape, groups, mine))[tuple(inner)]
        return np.transpose(block, np.argsort(order))

    def _read(self) -> tuple[list[int], list[int]]:
        """Our dims in their order, and how many of them each dim of theirs joins."""
        ours, _, theirs = self.equation.partition("->")
        groups = re.findall(r"\((\w*)\)|(\w)", theirs)
        groups = [several or one for several, one in groups]
        return [ours.index(dim) for dim in "".join(groups)], [len(group) for group in groups]


@dataclasses.dataclass(frozen=True)
class Place:
    """One tensor there, and where its parts are here."""

    name: str
    turn: Turn
    leaves: tuple[str, ...]  # paths in the parameters
    at: tuple[int, ...]  # of each leaf: number in its stack, number of the expert
    shapes: tuple[tuple[int, ...], ...]  # of each leaf below `at`

    @property
    def shape(self) -> tuple[int, ...]:
        return self.turn.shape(self.shapes)


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """A family of models: the tensors that are there once, and those of every layer."""

    once: tuple[Turn, ...]  # leaves are paths in the parameters
    per_layer: Callable[[object], tuple[Turn, ...]]  # of a BlockConfig; leaves are paths in the block
    ignored: tuple[str, ...] = ()  # patterns of names there that say nothing new, such as copies

    def places(self, m, specs) -> Iterator[Place]:
        """Every tensor there of the model `m`, whose parameters `specs` declares."""
        declared = dict(sp.leaves(specs))

        def place(turn: Turn, leaves: list[str], layer: int | None, at: tuple[int, ...]) -> Iterator[Place]:
            unknown = [leaf for leaf in leaves if leaf not in declared]
            if unknown:
                raise CheckpointError(f"tensor {turn.name!r} has no parameter {unknown[0]!r} in this model")
            experts = range(declared[leaves[0]].shape[len(at)]) if "{expert}" in turn.name else [None]
            for expert in experts:
                own = at if expert is None else (*at, expert)
                shapes = tuple(declared[leaf].shape[len(own) :] for leaf in leaves)
                name = turn.name.format(layer=layer, expert=expert)
                yield Place(name, turn, tuple(leaves), own, shapes)

        for turn in self.once:
            yield from place(turn, list(turn.leaves), None, ())
        for layer, (path, block, at) in enumerate(layers(m)):
            for turn in self.per_layer(block):
                yield from place(turn, [f"{path}/{leaf}" for leaf in turn.leaves], layer, (at,))

    def check(self, source: TensorSource, m, specs) -> None:
        """Refuse a source that does not hold exactly the tensors of the model.

        Raises:
          CheckpointError: a tensor is missing, unknown or of another shape; names it and its file.
        """
        found, wanted = set(source.names()), {}
        for place in self.places(m, specs):
            wanted[place.name] = place.shape
            if len(wanted) > MOST_TIMES * (len(found) + 100):  # a config may ask for more than memory holds
                asked = f"the config asks for {len(wanted):,} tensors and more"
                raise CheckpointError(f"{asked}, the files hold {len(found):,}; {REMEDY}")
        problems = [f"tensor {name!r} is missing" for name in wanted if name not in found]
        for name in found - wanted.keys():
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.ignored):
                problems.append(f"tensor {name!r} of {source.info(name).file} has no place in the config")
        for name in wanted.keys() & found:
            info = source.info(name)
            if info.shape != wanted[name]:
                what = f"tensor {name!r} of {info.file} is {info.shape}"
                problems.append(f"{what}, the config asks for {wanted[name]}")
        if HEAD in found - wanted.keys() and TABLE in found and not _equal(source, HEAD, TABLE):
            problems.append(f"tensors {HEAD!r} and {TABLE!r} differ, but the config says that they are tied")
        if problems:
            shown = sorted(problems)
            more = f"; and {len(shown) - 20} more" if len(shown) > 20 else ""
            raise CheckpointError(f"{'; '.join(shown[:20])}{more}; {REMEDY}")


def layers(m) -> list[tuple[str, object, int]]:
    """(path of the block, its BlockConfig, number in its stack) in the order in which a token passes them."""
    return [
        (f"group{g}/block{b}", block, at)
        for g, group in enumerate(m.groups)
        for at in range(group.repeat)
        for b, block in enumerate(group.blocks)
    ]


def _equal(source: TensorSource, name: str, other: str) -> bool:
    """Whether two matrices are the same bits."""
    info, another = source.info(name), source.info(other)
    if (info.shape, info.dtype) != (another.shape, another.dtype):
        return False
    step = max(1, COMPARED // max(1, math.prod(info.shape[1:]) * info.dtype.itemsize))
    rows = [(slice(first, first + step),) for first in range(0, info.shape[0], step)]
    return all(source.read(name, own).tobytes() == source.read(other, own).tobytes() for own in rows)


def _joined(shape: Sequence[int], groups: list[int]) -> tuple[int, ...]:
    """`shape` with each group of neighbouring dims as one."""
    ends = np.cumsum(groups)
    return tuple(math.prod(shape[end - size : end]) for end, size in zip(ends, groups, strict=True))


def _split(shape: tuple[int, ...], groups: list[int], mine: Sequence[int]) -> tuple[int, ...]:
    """The dims of a block of theirs apart: the first of each group as long as the block has it."""
    found, first = [], 0
    for length, size in zip(shape, groups, strict=True):
        rest = mine[first + 1 : first + size]
        found += [length // math.prod(rest), *rest][:size]
        first += size
    return tuple(found)
