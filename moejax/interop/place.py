"""Tensors of a source as the parameters of a model, each part read straight to the device that keeps it."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moejax import sharding
from moejax import specs as sp
from moejax.errors import CheckpointError
from moejax.interop.hf.tensor_map import Place, TensorMap
from moejax.interop.source import TensorSource

Progress = Callable[[str], None]
ALIGNMENT = 64  # bytes; memory that begins so becomes an array of the CPU without a copy


def load_params(
    source: TensorSource,
    table: TensorMap,
    m,
    specs,
    *,
    rounding: bool = False,
    progress: Progress | None = None,
):
    """Parameters of the model `m`; with a mesh (`jax.set_mesh`), placed by its rules.

    Beside the result, memory holds one part of one tensor.

    Args:
      specs: of the model.
      rounding: a tensor may have more bits than the parameter that it becomes.
      progress: is told the name of every parameter that is complete.

    Raises:
      CheckpointError: the source does not hold exactly the tensors of the model; nothing was read then.
    """
    table.check(source, m, specs)
    if not rounding:
        _refuse_rounding(source, table, m, specs)
    parts = {path: [] for path, _ in sp.leaves(specs)}
    for place in table.places(m, specs):
        for number, leaf in enumerate(place.leaves):
            parts[leaf].append((place, number))
    empty = [path for path, own in parts.items() if not own]
    if empty:
        raise CheckpointError(f"no tensor of this family holds the parameters {', '.join(empty)}")

    def leaf(path, spec):
        name = sp.path_name(path)

        def read(index):
            return _read(source, parts[name], spec, index)

        array = jax.make_array_from_callback(spec.shape, _where(spec), read)
        if progress:
            progress(name)
        return array

    return jax.tree_util.tree_map_with_path(leaf, specs, is_leaf=sp.is_spec)


def _refuse_rounding(source: TensorSource, table: TensorMap, m, specs) -> None:
    declared = dict(sp.leaves(specs))
    for place in table.places(m, specs):
        info = source.info(place.name)
        wanted = declared[place.leaves[0]].dtype
        if not np.can_cast(info.dtype, np.dtype(jnp.dtype(wanted))):
            raise CheckpointError(
                f"tensor {place.name!r} of {info.file} is {info.dtype}, the parameter {wanted}; give dtype="
                f"{wanted!r} to round it, or dtype={str(info.dtype)!r} to keep every bit of it"
            )


def _where(spec: sp.Spec) -> jax.sharding.Sharding:
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jnp.zeros(()).sharding
    return jax.sharding.NamedSharding(mesh, sharding.stored(spec.dims, mesh))


def _read(source: TensorSource, parts: list[tuple[Place, int]], spec: sp.Spec, index) -> np.ndarray:
    """The part `index` of a leaf."""
    wanted = [slice(*own.indices(length)[:2]) for own, length in zip(index, spec.shape, strict=True)]
    out = aligned_empty([own.stop - own.start for own in wanted], np.dtype(jnp.dtype(spec.dtype)))
    for place, number in parts:
        outer, inner = wanted[: len(place.at)], wanted[len(place.at) :]
        if all(own.start <= at < own.stop for own, at in zip(outer, place.at, strict=True)):
            at = tuple(at - own.start for own, at in zip(outer, place.at, strict=True))
            read = lambda theirs, name=place.name: source.read(name, theirs)
            out[at] = place.turn.back(read, number, place.shapes, inner)
    return out


def aligned_empty(shape, dtype: np.dtype) -> np.ndarray:
    """Memory that XLA on CPU takes as it is."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
