"""Matrices of 8-bit floats that share a scale in blocks of 128 by 128, read as float32.

DeepSeek-V3 (arXiv 2412.19437), section 3.3.2, as its files store it: beside a matrix `w` [O, I] there is
`w_scale_inv` [O / 128, I / 128], rounded up. A value stands for itself times that of its block.
"""

from collections.abc import Collection

import ml_dtypes
import numpy as np

from moejax.errors import CheckpointError
from moejax.interop.source import Index, TensorInfo, TensorSource

BLOCK = 128
SCALES = "_scale_inv"
PACKED = np.dtype(ml_dtypes.float8_e4m3fn)


def unpacked(source: TensorSource) -> TensorSource:
    """The same tensors, each packed matrix with its scales applied.

    Raises:
      CheckpointError: a matrix and its scales do not belong together; names them.
    """
    packed = {name.removesuffix(SCALES) for name in source.names() if name.endswith(SCALES)}
    return Unpacked(source, packed) if packed else source


class Unpacked:
    """A `TensorSource` of another one, some of whose matrices are packed."""

    def __init__(self, source: TensorSource, packed: set[str]):
        self._source, self._packed = source, packed
        for name in sorted(packed):
            self._check(name)

    def _check(self, name: str) -> None:
        scales = self._source.info(name + SCALES)
        if name not in self._source.names():
            raise CheckpointError(f"tensor {name + SCALES!r} of {scales.file} has no {name!r} beside it")
        matrix = self._source.info(name)
        wanted = tuple(-(-size // BLOCK) for size in matrix.shape)
        if matrix.dtype != PACKED or len(matrix.shape) != 2 or scales.shape != wanted:
            raise CheckpointError(
                f"tensor {name!r} of {matrix.file} is {matrix.dtype}{list(matrix.shape)}, but its scales are "
                f"{scales.dtype}{list(scales.shape)}; expected a matrix of {PACKED}, and a scale for every "
                f"block of {BLOCK} by {BLOCK}"
            )

    def names(self) -> Collection[str]:
        return {name for name in self._source.names() if not name.endswith(SCALES)}

    def info(self, name: str) -> TensorInfo:
        info = self._source.info(name)
        return TensorInfo(info.shape, np.dtype(np.float32), info.file) if name in self._packed else info

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A part of a tensor; the products of a packed one are rounded once, to float32."""
        if name not in self._packed:
            return self._source.read(name, index)
        part = self._source.read(name, index).astype(np.float32)
        scales = self._source.read(name + SCALES).astype(np.float32)  # few; so all of them
        asked = (*index, slice(None), slice(None))
        # The block of every row, then of every column.
        blocks = [
            np.atleast_1d(np.arange(size)[own] // BLOCK)
            for own, size in zip(asked, self.info(name).shape, strict=False)
        ]
        return part * scales[np.ix_(*blocks)].reshape(part.shape)
