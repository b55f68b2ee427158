"""Parameters that stay in the blocks of small integers of a GGUF file: a quarter of the memory, or an eighth.

A block lies along a row of a tensor, so along one dim of the parameter that it becomes, and the maps of the
families only move rows and dims. So integers, scales and lows are three more sources of tensors, whose last
dim is shorter, and are turned and placed like any other.
"""

import collections
import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from moejax import specs as sp
from moejax.config import require
from moejax.interop.gguf.hub_view import HubView
from moejax.interop.gguf.quants import Kind
from moejax.interop.gguf.source import GgufFile
from moejax.interop.hf.directory import Description
from moejax.interop.hf.tensor_map import Place, TensorMap
from moejax.interop.place import load_params
from moejax.interop.source import Index, TensorInfo
from moejax.model import forward as decoder
from moejax.quantised import BLOCK, Quantised


@dataclasses.dataclass(frozen=True)
class Field:
    """One part of every block."""

    at: slice  # its bytes
    dtype: np.dtype


HALF = np.dtype(np.float16)
FIELDS = {
    Kind.Q8_0: {"scale": Field(slice(0, 2), HALF), "code": Field(slice(2, 34), np.dtype(np.int8))},
    Kind.Q4_0: {"scale": Field(slice(0, 2), HALF), "code": Field(slice(2, 18), np.dtype(np.uint8))},
    Kind.Q4_1: {
        "scale": Field(slice(0, 2), HALF),
        "low": Field(slice(2, 4), HALF),
        "code": Field(slice(4, 20), np.dtype(np.uint8)),
    },
}
ZEROS = {Kind.Q4_0: 8}


@dataclasses.dataclass(frozen=True)
class Part:
    """A file as if it held only one field of its blocks; a source for a HubView."""

    file: GgufFile
    name: str  # of the field

    def names(self) -> Collection[str]:
        return [
            name for name, tensor in self.file.tensors.items() if self.name in FIELDS.get(tensor.kind, {})
        ]

    def info(self, name: str) -> TensorInfo:
        tensor = self.file.tensors[name]
        field = FIELDS[tensor.kind][self.name]
        return TensorInfo((*tensor.shape[:-1], _length(tensor.shape[-1], field)), field.dtype, tensor.path)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        kind = self.file.tensors[name].kind
        field = FIELDS[kind][self.name]

        def decode(raw_RB: np.ndarray) -> np.ndarray:
            blocks = raw_RB.reshape(len(raw_RB), -1, max(own.at.stop for own in FIELDS[kind].values()))
            return np.ascontiguousarray(blocks[..., field.at]).reshape(len(raw_RB), -1).view(field.dtype)

        return self.file.decoded(name, index, self.info(name), decode)


@dataclasses.dataclass(frozen=True)
class Some:
    """The map of a family, for some parameters, or for one field of their blocks."""

    table: TensorMap
    whole: dict[str, Any]  # specs of the model

    def check(self, source, m, specs) -> None:
        """Done before, for the whole model."""

    def places(self, m, specs) -> Iterator[Place]:
        for place in self.table.places(m, self.whole):
            if place.leaves[0] in specs:
                shapes = tuple(specs[leaf].shape[len(place.at) :] for leaf in place.leaves)
                yield dataclasses.replace(place, shapes=shapes)


def read(source: HubView, description: Description, dtype: str | None, progress=None):
    """(ModelConfig, parameters) with every matrix that a file has in 8 or 4 bits kept so.

    A parameter whose layers have different types, or a type of more involved blocks, is an array.

    Args:
      dtype: to compute in, and of the arrays; None takes float32.

    Raises:
      CheckpointError: the tensors are not those of the model.
      UsageError: there is a mesh.
    """
    require(jax.sharding.get_mesh().empty, "keep_quantised=True is for one device; load without it on a mesh")
    chosen = dtype or "float32"
    m = dataclasses.replace(description.model, dtype=chosen, param_dtype=chosen)
    table, tree = description.family.tensor_map(m), decoder.specs(m)
    table.check(source, m, tree)
    specs = dict(sp.leaves(tree))
    kept = _kept(source, table.places(m, specs), specs)
    some = Some(table, specs)
    arrays = {path: spec for path, spec in specs.items() if path not in kept}
    found = load_params(source, some, m, arrays, rounding=True, progress=progress)
    parts = {}
    for field in ("scale", "low", "code"):
        own = {
            path: _of_field(specs[path], *how, field) for path, how in kept.items() if field in FIELDS[how[0]]
        }
        view = dataclasses.replace(source, file=Part(source.file, field))
        told = progress if field == "code" else None
        parts[field] = load_params(view, some, m, own, rounding=True, progress=told)
    for path, (kind, dim) in kept.items():
        fields = {field: own[path] for field, own in parts.items() if path in own}
        found[path] = Quantised(**fields, dim=dim, zero=ZEROS.get(kind, 0))
    return m, jax.tree.map(found.get, _paths(tree))


def _kept(source: HubView, places: Iterable[Place], specs) -> dict[str, tuple[Kind, int]]:
    """(type, dim of the blocks) of every parameter that is kept."""
    seen = collections.defaultdict(set)
    for place in places:
        view = source.views[place.name]
        kind = source.file.tensors[view.name].kind
        ours, _, theirs = place.turn.equation.partition("->")
        dim = ours.index(re.findall(r"\w", theirs)[-1]) - len(ours)
        alone = len(place.leaves) == 1 and kind in FIELDS and not view.shift
        for leaf in place.leaves:
            seen[leaf].add((kind, dim) if alone and specs[leaf].shape[dim] % BLOCK == 0 else None)
    return {path: next(iter(own)) for path, own in seen.items() if len(own) == 1 and None not in own}


def _of_field(spec: sp.Spec, kind: Kind, dim: int, field: str) -> sp.Spec:
    """What holds one field of the blocks of a parameter."""
    shape, own = list(spec.shape), FIELDS[kind][field]
    shape[dim] = _length(shape[dim], own)
    return dataclasses.replace(spec, shape=tuple(shape), dtype=str(own.dtype))


def _length(width: int, field: Field) -> int:
    """Of a row of `width` numbers: how many values a field has."""
    return width // BLOCK * ((field.at.stop - field.at.start) // field.dtype.itemsize)


def _paths(tree):
    """The tree with the path of each leaf in its place."""
    return jax.tree_util.tree_map_with_path(lambda path, _: sp.path_name(path), tree, is_leaf=sp.is_spec)
