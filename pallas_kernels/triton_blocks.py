"""What the portable GPU kernels of all ops do: blocks of arrays, masked, and an order of programs.

A kernel sees whole arrays in the main memory and reads and writes blocks of them by itself.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton


class Part(NamedTuple):
    """What a program sees of one dim of an array: of `size` positions from `start` on the first `rest`."""

    start: jax.Array
    size: int
    rest: jax.Array | None  # None: all


def block(i, size: int, whole: int) -> Part:
    """The i-th of the blocks into which a dim is cut."""
    return Part(i * size, size, whole - i * size if whole % size else None)


def in_band(program, down: int, across: int, span: int):
    """Row and column of a program's tile where tiles are taken in bands `span` high, column by column."""
    first = program // (span * across) * span
    height = jnp.minimum(down - first, span)
    within = program % (span * across)
    return first + within % height, within // height


def not_addressed(x) -> str | None:
    """Why a kernel would not find all elements of an array, or None."""
    if x.size > 2**31 and x.size * x.dtype.itemsize <= 2**32:
        return f"{x.shape} has more than 2^31 elements, which jax counts in 32 bits up to 2^32 bytes"
    return None


def load(ref, *parts):
    """A block, zero where it is not inside."""
    mask = _inside(parts)
    return pltriton.load(ref.at[_index(parts)], mask=mask, other=None if mask is None else 0)


def store(ref, value, *parts) -> None:
    pltriton.store(ref.at[_index(parts)], value.astype(ref.dtype), mask=_inside(parts))


def _index(parts):
    return tuple(pl.ds(part.start, part.size) if isinstance(part, Part) else part for part in parts)


def _inside(parts):
    """The mask of a block's positions that are inside in every dim, or None where all are."""
    dims = [part for part in parts if isinstance(part, Part)]
    shape = tuple(part.size for part in dims)
    at = lambda dim: lax.broadcasted_iota(jnp.int32, shape, dim)
    masks = [at(dim) < part.rest for dim, part in enumerate(dims) if part.rest is not None]
    return functools.reduce(jnp.logical_and, masks) if masks else None
