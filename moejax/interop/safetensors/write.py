"""Tensors out to a directory of safetensors files, one of them in memory at a time."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moejax import durable
from moejax.config import require
from moejax.interop.safetensors.dtypes import DTYPES, NAMES
from moejax.interop.safetensors.header import MAX_NAME_BYTES, METADATA, PREFIX
from moejax.interop.safetensors.source import INDEX, SINGLE
from moejax.interop.source import TensorInfo

Outgoing = tuple[str, TensorInfo, Callable[[], np.ndarray]]  # name, what it will be, what makes it
ALIGNMENT = 8  # of the first tensor in a file; wide dtypes come first, so that all are aligned


class _Tensor(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


def write_safetensors(
    directory: Path,
    tensors: Iterable[Outgoing],
    max_shard_bytes: int = 5 << 30,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write `model.safetensors`, or shards and their index, into an existing directory; files are synced.

    Args:
      tensors: all of them are planned before the first is made; each is let go once it is written.
      max_shard_bytes: of the tensors in one file, unless one tensor alone has more.
      progress: is told the name of every tensor that is written.

    Raises:
      UsageError: a name is there twice or too long, a dtype is not one of the format.
      OSError: the disk is full or failed; the caller takes the directory away.
    """
    planned = _planned(tensors)
    shards = list(_shards(planned, max_shard_bytes))
    if len(shards) == 1:
        _write_file(directory / SINGLE, shards[0], progress)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(directory / file, shard, progress)
        weight_map |= dict.fromkeys((tensor.name for tensor in shard), file)
    total = sum(tensor.num_bytes for tensor in planned)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    durable.write_file(directory / INDEX, (json.dumps(index, indent=2) + "\n").encode())


def _planned(tensors: Iterable[Outgoing]) -> list[_Tensor]:
    planned = {}
    for name, info, make in tensors:
        fits = 1 <= len(name.encode()) <= MAX_NAME_BYTES and name != METADATA
        require(fits, f"safetensors has no room for a tensor called {name!r}; names have 1 to 512 bytes")
        require(name not in planned, f"two tensors are called {name!r}; give each a name of its own")
        known = ", ".join(map(str, NAMES))
        require(info.dtype in NAMES, f"tensor {name!r} is {info.dtype}; safetensors has {known}")
        planned[name] = _Tensor(name, NAMES[info.dtype], tuple(info.shape), make)
    return list(planned.values())


def _shards(tensors: list[_Tensor], max_shard_bytes: int) -> Iterator[list[_Tensor]]:
    """Runs of tensors of at most `max_shard_bytes`; at least one run."""
    shard, size = [], 0
    for tensor in tensors:
        if shard and size + tensor.num_bytes > max_shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.num_bytes
    yield shard


def _write_file(path: Path, shard: list[_Tensor], progress: Callable[[str], None] | None) -> None:
    shard = sorted(shard, key=lambda tensor: -tensor.itemsize)
    with open(path, "wb") as file:
        file.write(_header(shard))
        for tensor in shard:
            array = tensor.make()
            if array.shape != tensor.shape or array.dtype != DTYPES[tensor.dtype]:
                planned = f"{tensor.dtype} {tensor.shape} was planned"
                raise ValueError(f"tensor {tensor.name!r} is {array.dtype} {array.shape}, but {planned}")
            file.write(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
            del array  # or it is still there while the next one is made
            if progress:
                progress(tensor.name)
    durable.sync(path)


def _header(shard: list[_Tensor]) -> bytes:
    entries, at = {METADATA: {"format": "pt"}}, 0  # transformers insists on a format that it knows
    for tensor in shard:
        offsets = [at, at := at + tensor.num_bytes]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(PREFIX + len(text)) % ALIGNMENT)
    return len(text).to_bytes(PREFIX, "little") + text
