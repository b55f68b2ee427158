"""Weights that stay short in memory: integers in the blocks in which a file has them, or per channel, or
floats of 16 bits.

A block is 32 numbers that lie one behind the other along the dim over which the weight is contracted:
number = (code - zero) * scale + low. A channel is all the numbers that one output sums over. A leaf of any
kind stands where an array would, and what a layer does with a weight, cast it to the dtype of the
activations, makes the array; products with channels are those of integers, products with floats of 16 bits
round the rows to 16 bits too (`moejax.weights`). No gradient.
"""

from typing import Any

import jax.numpy as jnp
from flax import struct

BLOCK = 32


@struct.dataclass
class Quantised:
    """The layout is that of GGUF's Q8_0 (8 bits), Q4_0 (4 bits, zero = 8) and Q4_1 (4 bits, with `low`)."""

    code: Any  # int8; of 4 bits uint8, which holds number i of a block and, above it, number i + 16
    scale: Any  # one per block
    low: Any = None  # one per block
    dim: int = struct.field(pytree_node=False, default=-1)  # along which blocks lie, counted from the last
    zero: int = struct.field(pytree_node=False, default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that this stands for."""
        dim = self.scale.ndim + self.dim
        return (*self.scale.shape[:dim], self.scale.shape[dim] * BLOCK, *self.scale.shape[dim + 1 :])

    @property
    def ndim(self) -> int:
        return self.scale.ndim

    @property
    def nbytes(self) -> int:
        """What is held."""
        return sum(part.nbytes for part in (self.code, self.scale, self.low) if part is not None)

    def astype(self, dtype):
        """The array; computed in float32, then rounded."""
        dim = self.scale.ndim + self.dim
        blocks = self.code.reshape(*self.scale.shape[: dim + 1], -1, *self.code.shape[dim + 1 :])
        if blocks.dtype == jnp.uint8:
            blocks = jnp.concatenate([blocks & 15, blocks >> 4], axis=dim + 1).astype(jnp.int8)
        each = lambda part: jnp.expand_dims(part, dim + 1).astype(jnp.float32)
        number = (blocks - self.zero).astype(jnp.float32) * each(self.scale)
        if self.low is not None:
            number = number + each(self.low)
        return number.reshape(self.shape).astype(dtype)

    def map_parts(self, function) -> "Quantised":
        """What `function` makes of each array; it must leave the dim of the blocks as it is."""
        low = None if self.low is None else function(self.low)
        return self.replace(code=function(self.code), scale=function(self.scale), low=low)


@struct.dataclass
class Int8:
    """number = code * scale, with a scale for every channel: symmetric, in 255 steps."""

    code: Any  # int8; of the array's shape
    scale: Any  # f32; the code's shape without the dims that are summed over
    dims: tuple[int, ...] = struct.field(pytree_node=False)  # summed over, counted from the last

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that this stands for."""
        return self.code.shape

    @property
    def ndim(self) -> int:
        return self.code.ndim

    @property
    def nbytes(self) -> int:
        """What is held."""
        return self.code.nbytes + self.scale.nbytes

    def astype(self, dtype):
        """The array; computed in float32, then rounded."""
        dims = tuple(dim + self.ndim for dim in self.dims)
        return (self.code.astype(jnp.float32) * jnp.expand_dims(self.scale, dims)).astype(dtype)


@struct.dataclass
class Bfloat16:
    """A float of 16 bits for every number, among activations of more bits."""

    number: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.number.shape

    @property
    def ndim(self) -> int:
        return self.number.ndim

    @property
    def nbytes(self) -> int:
        """What is held."""
        return self.number.nbytes

    def astype(self, dtype):
        """The array in another type."""
        return self.number.astype(dtype)


def is_quantised(leaf) -> bool:
    """For `is_leaf=`."""
    return isinstance(leaf, Quantised | Int8 | Bfloat16)
