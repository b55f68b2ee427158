"""Where tensors come from: names, shapes, and the parts of one tensor, read when somebody asks for them."""

import dataclasses
from collections.abc import Collection
from typing import Protocol

import numpy as np

Index = tuple[slice | int, ...]  # leading dims; missing ones are taken whole; slices have step 1


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype  # of what `read` returns; bfloat16 is that of ml_dtypes
    file: str  # for messages


class TensorSource(Protocol):
    """Named tensors of one model. A file is checked when the source is made, before any tensor is read."""

    def names(self) -> Collection[str]: ...

    def info(self, name: str) -> TensorInfo:
        """Of a tensor in `names`."""

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A part of a tensor, in memory of its own; no more than that part is kept in memory."""
