"""Varying manual axes: what `shard_map(check_vma=True)` asks of kernels.

A custom VJP needs all of its inputs to vary over the same mesh axes, and so do the carries of a loop.
Casting a replicated array to varying has a sum over those axes as its transpose, so that gradients of
replicated weights come out summed.
"""

import jax
from jax import lax


def varying_axes(*arrays: jax.Array) -> frozenset[str]:
    """The manual mesh axes over which at least one of `arrays` varies."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    """`x`, made to vary over `axes` too."""
    missing = tuple(sorted(axes - varying_axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


def like(x: jax.Array, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    """What a kernel says of a result that varies over the axes over which its operand `x` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def vary_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """`arrays`, all made to vary over every axis over which one of them does."""
    axes = varying_axes(*arrays)
    return tuple(vary(x, axes) for x in arrays)
