"""A tree of arrays as a flat dict of named ones, the form in which checkpoints store it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moejax.training.manifest import Tensor

PyTree = Any
_SHOWN = 20  # lines of a diff


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by path, such as `params/groups/0/down`.

    Raises:
        ValueError: two leaves would get the same name.
    """
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in named:
            raise ValueError(f"two leaves are called {name!r}; rename the key of one of them")
        named[name] = leaf
    return named


def is_key(leaf: Any) -> bool:
    """Whether `leaf` is an array of random keys rather than of numbers."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def describe(named: dict[str, Any]) -> tuple[Tensor, ...]:
    """Name, shape and dtype of every leaf, as the manifest keeps them."""
    return tuple(Tensor(name, tuple(leaf.shape), str(leaf.dtype)) for name, leaf in named.items())


def stored_form(leaf: Any) -> Any:
    """`leaf` as numbers: keys become their uint32 data. Works on arrays and on ShapeDtypeStructs."""
    if not is_key(leaf):
        return leaf
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.random.key_data(leaf)
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def original_form(stored: Any, like: Any) -> Any:
    """Undo `stored_form`: data becomes keys where `like` has keys."""
    if not is_key(like):
        return stored
    impl = jax.random.key_impl(jnp.empty((), like.dtype))  # `like` may be a ShapeDtypeStruct, which has none
    return jax.random.wrap_key_data(stored, impl=impl)


def num_bytes(named: dict[str, Any]) -> int:
    """Bytes of all leaves before compression."""
    return sum(leaf.nbytes for leaf in named.values())


def diff(saved: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[str]:
    """One line per leaf that differs, at most 20 and a count of the rest; empty if all agree."""
    old, new = {t.name: t for t in saved}, {t.name: t for t in wanted}
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            lines.append(f"{name} is {_show(old[name])} in the checkpoint, the config asks for no such leaf")
        elif name not in old:
            lines.append(f"{name} is not in the checkpoint, the config asks for {_show(new[name])}")
        elif old[name] != new[name]:
            lines.append(f"{name} is {_show(old[name])}, the config asks for {_show(new[name])}")
    more = len(lines) - _SHOWN
    return lines[:_SHOWN] + ([f"... and {more} more"] if more > 0 else [])


def _show(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tensor.shape}"
