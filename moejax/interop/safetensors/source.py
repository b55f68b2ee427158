"""The tensors of a directory of safetensors files, read part by part."""

import math
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from moejax.errors import CheckpointError, UsageError
from moejax.interop import json_file, safe_files
from moejax.interop.safetensors.header import Entry, read_header
from moejax.interop.source import Index, TensorInfo

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DIRECT_BYTES = 1 << 16  # shorter runs of bytes are read together with what lies between them
BLOCK_BYTES = 8 << 20  # so many of them at once


class SafetensorsDir:
    """A `TensorSource`: `model.safetensors`, or the shards that `model.safetensors.index.json` names.

    Every header is checked when it is made.

    Args:
      path: of the directory.

    Raises:
      UsageError: there is no such file in the directory.
      CheckpointError: a file is damaged, or the shards do not hold what the index says; it names the file and
        the tensor.
    """

    def __init__(self, path: Path):
        self.files: list[str] = []  # names in the directory, in order
        self._places: dict[str, tuple[Path, Entry]] = {}
        path = Path(path)
        if os.path.lexists(path / INDEX):
            self._add_shards(path, _weight_map(path))
        elif os.path.lexists(path / SINGLE):
            self._add(path, SINGLE)
        else:
            raise UsageError(_nothing_in(path))

    def names(self) -> Collection[str]:
        """Names of all tensors."""
        return self._places.keys()

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and file of a tensor."""
        path, entry = self._places[name]
        return TensorInfo(entry.shape, entry.dtype, str(path))

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A part of a tensor, in memory of its own.

        Raises:
          CheckpointError: the file cannot be read any more.
        """
        path, entry = self._places[name]
        starts, sizes = _bounds(entry.shape, index)
        part = np.empty(sizes, entry.dtype)
        if part.size:
            with safe_files.opened(path) as fd:
                _fill(fd, entry.begin, entry.shape, starts, part)
        whole = [i for i in range(len(sizes)) if i >= len(index) or isinstance(index[i], slice)]
        return part.reshape([sizes[i] for i in whole])

    def _add(self, root: Path, file: str) -> dict[str, Entry]:
        """Take the tensors of a file in."""
        path = safe_files.inside(root, file)
        entries = read_header(path)
        for name, entry in entries.items():
            if name in self._places:
                first = self._places[name][0]
                raise CheckpointError(f"tensor {name!r} is in {first} and in {path}; remove one of the files")
            self._places[name] = (path, entry)
        self.files.append(file)
        return entries

    def _add_shards(self, root: Path, weight_map: dict[str, str]) -> None:
        wanted: dict[str, set[str]] = {file: set() for file in sorted(set(weight_map.values()))}
        for name, file in weight_map.items():
            wanted[file].add(name)
        for file, names in wanted.items():
            found = self._add(root, file).keys()
            if names - found:
                what = f"has no tensor {min(names - found)!r}, though {INDEX} says so"
                raise CheckpointError(f"{root / file} {what}; get both again")
            if found - names:
                what = f"has a tensor {min(found - names)!r} of which {INDEX} says nothing"
                raise CheckpointError(f"{root / file} {what}; get both again")


def _fill(fd: int, begin: int, shape: tuple[int, ...], starts: list[int], part: np.ndarray) -> None:
    """Read `part`, which begins at `starts` in the tensor of `shape` at byte `begin` of the file."""
    stride = math.prod(shape[1:]) * part.itemsize
    begin += starts[0] * stride if starts else 0
    if part.shape[1:] == shape[1:]:
        safe_files.read_into(fd, memoryview(_bytes(part)), begin)
    elif part.shape[2:] == shape[2:]:
        first = starts[1] * math.prod(shape[2:]) * part.itemsize
        _fill_columns(fd, begin + first, stride, _bytes(part).reshape(len(part), -1))
    else:
        for row in part:
            _fill(fd, begin, shape[1:], starts[1:], row)
            begin += stride


def _fill_columns(fd: int, begin: int, stride: int, part_RW: np.ndarray) -> None:
    """Read rows of bytes that begin `stride` bytes after one another."""
    rows, width = part_RW.shape
    if width >= DIRECT_BYTES:
        for row, place in enumerate(part_RW):
            safe_files.read_into(fd, memoryview(place), begin + row * stride)
        return
    some = max(BLOCK_BYTES // stride, 1)
    for row in range(0, rows, some):
        count = min(some, rows - row)
        block = np.empty(count * stride, np.uint8)
        safe_files.read_into(fd, memoryview(block)[: (count - 1) * stride + width], begin + row * stride)
        part_RW[row : row + count] = block.reshape(count, stride)[:, :width]


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _bounds(shape: tuple[int, ...], index: Index) -> tuple[list[int], list[int]]:
    """Start and size in every dim; a number is a size of 1."""
    if len(index) > len(shape):
        raise IndexError(f"{len(index)} indices for a tensor of {len(shape)} dims")
    starts, sizes = [0] * len(shape), list(shape)
    for i, (at, size) in enumerate(zip(index, shape, strict=False)):
        start, stop, step = at.indices(size) if isinstance(at, slice) else (at, at + 1, 1)
        if step != 1 or not 0 <= start <= size or stop > size:
            raise IndexError(f"index {at} in a dim of size {size}; slices have step 1, numbers are in range")
        starts[i], sizes[i] = start, max(stop - start, 0)
    return starts, sizes


def _weight_map(root: Path) -> dict[str, str]:
    """File of every tensor, as the index says."""
    path = safe_files.inside(root, INDEX)
    weight_map = json_file.read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map from names of tensors to names of files; replace it")
    if not weight_map:
        raise CheckpointError(f"{path} names no tensor; replace it")
    strange = {file for file in weight_map.values() if not file.endswith(".safetensors")}
    if strange:
        raise CheckpointError(
            f"{path} names {min(strange)[:255]!r}, which is no .safetensors file; replace it"
        )
    return weight_map


def _nothing_in(root: Path) -> str:
    pickles = sorted(path.name for path in root.glob("*") if path.suffix in PICKLES)
    if not pickles:
        return f"{root} has no {SINGLE} and no {INDEX}; get the model in one of these forms"
    return (
        f"{root} has no {SINGLE}, but {pickles[0]}: a pickle can run code when it is opened, so it never is; "
        "get the model as safetensors, or let save_pretrained of transformers write it where you trust it"
    )
