"""Parameters declared once: initialisation, sharding, restore and checks read one tree of Specs."""

import dataclasses
import math
import zlib

import jax
import jax.numpy as jnp

from moejax import sharding
from moejax.errors import CheckpointError
from moejax.quantised import is_quantised

STACKED = ("layer", "expert")  # dims along which a parameter holds many matrices


@dataclasses.dataclass(frozen=True)
class Normal:
    """Normal with standard deviation `std`, truncated at two of them."""

    std: float

    def draw(self, key, shape, dtype):
        unit = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.promote_types(dtype, jnp.float32))
        return (unit * (self.std / 0.87962566)).astype(dtype)  # std of the truncated unit normal


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same value everywhere."""

    value: float

    def draw(self, key, shape, dtype):
        return jnp.full(shape, self.value, dtype)


@dataclasses.dataclass(frozen=True)
class Spec:
    """One parameter: its shape, the name of each dim, and how it starts."""

    shape: tuple[int, ...]
    dims: tuple[str | None, ...]
    init: Normal | Constant
    dtype: str = "float32"
    used: float = 1.0  # share of it that one token passes: k/E of an expert bank

    def __post_init__(self):
        if len(self.shape) != len(self.dims):
            names = f"{len(self.dims)} names {self.dims}"
            raise ValueError(f"shape {self.shape} has {len(self.shape)} dims, but {names}")

    def stacked(self, repeat: int) -> "Spec":
        """The same parameter for `repeat` layers."""
        return dataclasses.replace(self, shape=(repeat, *self.shape), dims=("layer", *self.dims))


def is_spec(x) -> bool:
    return isinstance(x, Spec)


def tree_map(f, specs, *rest):
    """`jax.tree.map` whose leaves are Specs."""
    return jax.tree.map(f, specs, *rest, is_leaf=is_spec)


def leaves(specs) -> list[tuple[str, Spec]]:
    """(path, Spec) pairs in tree order; a path reads `group0/block0/ffn/experts/up`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)
    return [(path_name(path), spec) for path, spec in flat]


def path_name(path) -> str:
    """A key path as text with slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def init(key, specs):
    """Fresh parameters; each leaf has its own stream, so a new parameter moves no other."""

    def draw(path, spec):
        own_key = jax.random.fold_in(key, zlib.crc32(path_name(path).encode()))
        value = spec.init.draw(own_key, spec.shape, spec.dtype)
        target = sharding.stored(spec.dims)
        return value if target is None else jax.reshard(value, target)

    return jax.tree_util.tree_map_with_path(draw, specs, is_leaf=is_spec)


def shapes(specs, mesh=None):
    """ShapeDtypeStructs, with shardings if there is a mesh."""

    def shape(spec):
        place = None if mesh is None else jax.sharding.NamedSharding(mesh, sharding.stored(spec.dims, mesh))
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=place)

    return tree_map(shape, specs)


def count(specs) -> int:
    """Parameters in all."""
    return sum(math.prod(spec.shape) for _, spec in leaves(specs))


def count_active(specs) -> int:
    """Parameters that one token passes."""
    return round(sum(math.prod(spec.shape) * spec.used for _, spec in leaves(specs)))


def check(params, specs) -> None:
    """Raise CheckpointError unless `params` has exactly the declared paths, shapes and dtypes."""
    wanted = dict(leaves(specs))
    flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_quantised)
    found = {path_name(path): leaf for path, leaf in flat}
    problems = [f"params[{name!r}] is missing" for name in wanted if name not in found]
    problems += [f"params[{name!r}] is not in the config" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        spec, leaf = wanted[name], found[name]
        here = f"params[{name!r}] is"
        if tuple(leaf.shape) != spec.shape:
            dims = " ".join(str(dim) for dim in spec.dims)
            problems.append(f"{here} {tuple(leaf.shape)}, the config asks for {spec.shape} ({dims})")
        elif is_quantised(leaf):
            problems.append(f"{here} kept in few bits; load the model without keep_quantised and --weights")
        elif str(leaf.dtype) != spec.dtype:
            problems.append(f"{here} {leaf.dtype}, the config asks for {spec.dtype}")
    if problems:
        remedy = "use the config that these parameters were made with"
        raise CheckpointError("; ".join([*sorted(problems), remedy]))
