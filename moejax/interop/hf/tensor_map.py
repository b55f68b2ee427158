"""Parameters here, tensors there: both directions from one table.

A `Turn` says how a tensor of the other library is made from ours: "DHA->(HA)D" moves the dims into that order
and joins those in brackets. Nothing is computed, so there and back is the same bits.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from moejax import specs as sp
from moejax.errors import CheckpointError

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One tensor of the other library."""

    name: str  # there; "{layer}" stands for the number of the layer
    leaves: tuple[str, ...]  # here, as paths; several lie end to end along the joined dim
    equation: str  # our dims -> theirs
    join: int = 0  # dim of theirs along which several leaves lie end to end

    def forth(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Their tensor out of our leaves, in memory of its own."""
        order, groups = self._read()
        turned = [np.transpose(value, order) for value in values]
        turned = [x.reshape(_joined(x.shape, groups)) for x in turned]
        return np.ascontiguousarray(np.concatenate(turned, self.join))

    def back(self, tensor: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Our leaves, of the declared shapes, out of their tensor."""
        order, groups = self._read()
        turned = [tuple(shape[dim] for dim in order) for shape in shapes]
        sizes = [_joined(shape, groups)[self.join] for shape in turned]
        whole = list(_joined(turned[0], groups))
        whole[self.join] = sum(sizes)
        if tensor.shape != tuple(whole):
            raise CheckpointError(
                f"tensor {self.name!r} is {tensor.shape}, the config asks for {tuple(whole)}; "
                "use the config that these tensors were made with"
            )
        parts = np.split(tensor, np.cumsum(sizes)[:-1], self.join)
        home = np.argsort(order)
        return [np.transpose(part.reshape(shape), home) for part, shape in zip(parts, turned, strict=True)]

    def _read(self) -> tuple[list[int], list[int]]:
        """Our dims in their order, and how many of them each dim of theirs joins."""
        ours, _, theirs = self.equation.partition("->")
        groups = re.findall(r"\((\w+)\)|(\w)", theirs)
        groups = [several or one for several, one in groups]
        return [ours.index(dim) for dim in "".join(groups)], [len(group) for group in groups]


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """A family of models: the tensors that are there once, and those of every layer."""

    once: tuple[Turn, ...]  # leaves are paths in the parameters
    per_layer: tuple[Turn, ...]  # leaves are paths in a block

    def forth(self, params, m) -> Tensors:
        """Every tensor of the other library.

        Args:
          params: as the Specs of the model `m` declare.
        """
        flat, _ = jax.tree_util.tree_flatten_with_path(params)
        ours = {sp.path_name(path): np.asarray(leaf) for path, leaf in flat}
        places = self._places(m)
        return {name: turn.forth([ours[leaf][at] for leaf in leaves]) for name, leaves, at, turn in places}

    def back(self, tensors: Mapping[str, np.ndarray], specs, m):
        """Numpy parameters as `specs`, those of the model `m`, declare.

        Raises:
          CheckpointError: a tensor is missing, unknown, or of another shape or dtype.
        """
        params = sp.tree_map(lambda spec: np.empty(spec.shape, spec.dtype), specs)
        ours = {path: leaf for (path, _), leaf in zip(sp.leaves(specs), jax.tree.leaves(params), strict=True)}
        places = list(self._places(m))
        _check_names({name for name, *_ in places}, set(tensors))
        for name, leaves, at, turn in places:
            tensor = np.asarray(tensors[name])
            parts = turn.back(tensor, [ours[leaf][at].shape for leaf in leaves])
            for leaf, part in zip(leaves, parts, strict=True):
                if part.dtype != ours[leaf].dtype:
                    raise CheckpointError(
                        f"tensor {name!r} is {part.dtype}, the config asks for {ours[leaf].dtype}; "
                        "convert it, or set model.param_dtype"
                    )
                ours[leaf][at] = part
        return params

    def _places(self, m) -> Iterator[tuple[str, list[str], int | tuple, Turn]]:
        """(name there, paths here, index in each of them, how) of every tensor."""
        for turn in self.once:
            yield turn.name, list(turn.leaves), (), turn
        for layer, (block, at) in enumerate(layers(m)):
            for turn in self.per_layer:
                yield turn.name.format(layer=layer), [f"{block}/{leaf}" for leaf in turn.leaves], at, turn


def layers(m) -> list[tuple[str, int]]:
    """(path of the block, index in its stack) of every layer, in the order in which a token passes them."""
    return [
        (f"group{g}/block{b}", at)
        for g, group in enumerate(m.groups)
        for at in range(group.repeat)
        for b in range(len(group.blocks))
    ]


def _check_names(wanted: set[str], found: set[str]) -> None:
    problems = [f"tensor {name!r} is missing" for name in wanted - found]
    problems += [f"tensor {name!r} has no place in the config" for name in found - wanted]
    if problems:
        found = "; ".join(sorted(problems))
        raise CheckpointError(f"{found}; use the config that these tensors were made with")


def _joined(shape: tuple[int, ...], groups: list[int]) -> tuple[int, ...]:
    """`shape` with each group of neighbouring dims as one."""
    ends = np.cumsum(groups)
    return tuple(math.prod(shape[end - size : end]) for end, size in zip(ends, groups, strict=True))
