"""Tensors of 4-bit floats that share a scale in groups of 32, read as bfloat16.

OCP Microscaling Formats (arXiv 2310.10537), MXFP4, as gpt-oss stores its experts: a tensor `w` [..., I, O] is
`w_blocks` [..., O, I / 32, 16], two values to a byte, the lower half first, and `w_scales` [..., O, I / 32],
whose value s stands for 2^(s - 127). Every product of the two is a bfloat16.
"""

import itertools
from collections.abc import Collection

import ml_dtypes
import numpy as np

from moejax.errors import CheckpointError
from moejax.interop.source import Index, TensorInfo, TensorSource

GROUP, BIAS = 32, 127
MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([MAGNITUDES, -MAGNITUDES])
BLOCKS, SCALES = "_blocks", "_scales"


def unpacked(source: TensorSource) -> TensorSource:
    """The same tensors, each packed pair as the one that it stands for.

    Raises:
      CheckpointError: blocks and scales do not belong together; names them.
    """
    packed = {name.removesuffix(BLOCKS) for name in source.names() if name.endswith(BLOCKS)}
    return Unpacked(source, packed) if packed else source


class Unpacked:
    """A `TensorSource` of another one, some of whose tensors are packed."""

    def __init__(self, source: TensorSource, packed: set[str]):
        self._source, self._packed = source, packed
        for name in sorted(packed):
            self._check(name)

    def _check(self, name: str) -> None:
        blocks = self._source.info(name + BLOCKS)
        if name + SCALES not in self._source.names():
            raise CheckpointError(
                f"tensor {name + BLOCKS!r} of {blocks.file} has no {name + SCALES!r} beside it"
            )
        scales = self._source.info(name + SCALES)
        wanted = (*scales.shape, GROUP // 2)
        if (
            len(scales.shape) < 2
            or blocks.shape != wanted
            or {blocks.dtype, scales.dtype} != {np.dtype("u1")}
        ):
            raise CheckpointError(
                f"tensor {name + BLOCKS!r} of {blocks.file} is {blocks.dtype}{list(blocks.shape)}, but its "
                f"scales are {scales.dtype}{list(scales.shape)}; expected bytes, and one scale for every 16"
            )

    def names(self) -> Collection[str]:
        ends = tuple(name + end for name in self._packed for end in (BLOCKS, SCALES))
        return {*self._source.names(), *self._packed}.difference(ends)

    def info(self, name: str) -> TensorInfo:
        if name not in self._packed:
            return self._source.info(name)
        scales = self._source.info(name + SCALES)
        *outer, rows, groups = scales.shape
        return TensorInfo((*outer, groups * GROUP, rows), np.dtype(ml_dtypes.bfloat16), scales.file)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A part of a tensor; a packed one matrix by matrix."""
        if name not in self._packed:
            return self._source.read(name, index)
        info = self.info(name)
        bounds = [_bounds(own, size) for own, size in itertools.zip_longest(index, info.shape)]
        out = np.empty([own.stop - own.start for own in bounds], info.dtype)
        *outer, columns, rows = bounds
        groups = slice(columns.start // GROUP, -(-columns.stop // GROUP))
        inside = slice(columns.start - groups.start * GROUP, columns.stop - groups.start * GROUP)
        for at in np.ndindex(*out.shape[:-2]):
            here = (*(own.start + i for own, i in zip(outer, at, strict=True)), rows, groups)
            blocks, scales = (self._source.read(name + end, here) for end in (BLOCKS, SCALES))
            out[at] = decoded(blocks, scales)[:, inside].T
        return out[tuple(0 if isinstance(own, int) else slice(None) for own in index)]


def decoded(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """f32[R, 32 C] out of bytes [R, C, 16] and their scales [R, C]."""
    halves = np.stack([blocks & 15, blocks >> 4], axis=-1)
    exponents = scales.astype(np.int32)[..., None, None] - BIAS
    return np.ldexp(VALUES[halves], exponents).reshape(len(blocks), -1)


def _bounds(own: slice | int | None, size: int) -> slice:
    if isinstance(own, int):
        return slice(own, own + 1)
    return slice(*(own or slice(None)).indices(size)[:2])
