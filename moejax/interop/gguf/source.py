"""A GGUF model, in one file or split into several, as a source of tensors under llama.cpp's names."""

import itertools
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from moejax.errors import CheckpointError
from moejax.interop.gguf import quants
from moejax.interop.gguf.header import Header, Tensor, read_header
from moejax.interop.safe_files import opened, read_into
from moejax.interop.source import Index, TensorInfo

CHUNK_BYTES = 4 << 20  # of a file that are decoded at once
PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class GgufFile:
    """Tensors of a model; blocks of small integers are read as float32, one part of one tensor at a time.

    Args:
      path: of the file; of a model that is split, of any of its files.

    Raises:
      CheckpointError: a file is damaged or missing, or has tensors of a type that is not read.
    """

    def __init__(self, path: str | os.PathLike):
        headers = _headers(Path(path))
        self.path = os.fspath(path)
        self.metadata: Mapping[str, object] = headers[0].metadata
        self.tensors: dict[str, Tensor] = {}
        for header in headers:
            for name, tensor in header.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(
                        f"{header.path}: tensor {name!r} is in {self.tensors[name].path} too"
                    )
                if tensor.kind not in quants.KINDS:
                    known = ", ".join(kind.name for kind in quants.KINDS)
                    raise CheckpointError(
                        f"{header.path}: at byte {tensor.at}: tensor {name!r} has type {tensor.kind.name}; "
                        f"convert the model to one of {known}"
                    )
                self.tensors[name] = tensor

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def info(self, name: str) -> TensorInfo:
        tensor = self.tensors[name]
        return TensorInfo(tensor.shape, quants.dtype(tensor.kind), tensor.path)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        kind = self.tensors[name].kind
        return self.decoded(name, index, self.info(name), lambda raw_RB: quants.decode(raw_RB, kind))

    def decoded(self, name: str, index: Index, info: TensorInfo, decode: Callable) -> np.ndarray:
        """A part of what `decode` makes of a tensor's rows.

        Args:
          info: of the whole of it; all dims but the last are the tensor's.
          decode: rows of bytes (uint8) to rows of numbers.
        """
        picks = [_pick(own, length) for own, length in itertools.zip_longest(index, info.shape)]
        last = slice(*picks[-1])
        rows = math.prod(stop - start for start, stop in picks[:-1])
        out_RD = np.empty((rows, last.stop - last.start), info.dtype)
        done = 0
        for raw_RB in _parts(self.tensors[name], list(_runs(info.shape[:-1], picks[:-1]))):
            out_RD[done : done + len(raw_RB)] = decode(raw_RB)[:, last]
            done += len(raw_RB)
        numbers = {dim for dim, own in enumerate(index) if not isinstance(own, slice)}
        return out_RD.reshape([stop - start for dim, (start, stop) in enumerate(picks) if dim not in numbers])


def _headers(path: Path) -> list[Header]:
    """Of every file of the model; the first has the metadata."""
    header = read_header(path)
    count = header.metadata.get("split.count", 1)
    if count == 1 or count == 0:
        return [header]
    named = PART.fullmatch(path.name)
    if not named or int(named["count"]) != count:
        raise CheckpointError(
            f"{path}: one of {count} files, found by their names; "
            f"name it NAME-00001-of-{count:05d}.gguf if it is the first, and so on"
        )
    files = [
        path.with_name(f"{named['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)
    ]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(
            f"{path}: one of {count} files, of which {', '.join(missing)} are missing beside it"
        )
    headers = [header if file == path else read_header(file) for file in files]
    for number, own in enumerate(headers):
        found = own.metadata.get("split.no"), own.metadata.get("split.count")
        if found != (number, count):
            raise CheckpointError(
                f"{own.path}: says it is {found} (number, of how many); here is {number, count}"
            )
    held, promised = sum(len(own.tensors) for own in headers), headers[0].metadata.get("split.tensors.count")
    if promised != held:
        raise CheckpointError(
            f"{headers[0].path}: the files hold {held} tensors, the first one says {promised}"
        )
    return headers


def _pick(own: slice | int | None, length: int) -> tuple[int, int]:
    """(start, stop) of one dim."""
    if own is None:
        return 0, length
    if isinstance(own, slice):
        start, stop, _ = own.indices(length)
        return start, max(start, stop)
    return own, own + 1


def _runs(shape: tuple[int, ...], picks: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of what lies together in the file, in order."""
    whole = len(shape)
    while whole and picks[whole - 1] == (0, shape[whole - 1]):
        whole -= 1
    inner = math.prod(shape[whole:])
    if not whole:
        yield 0, inner
        return
    start, stop = picks[whole - 1]
    for outer in itertools.product(*(range(*pick) for pick in picks[: whole - 1])):
        first = 0
        for at, length in zip((*outer, start), shape, strict=False):
            first = first * length + at
        yield first * inner, (stop - start) * inner


def _parts(tensor: Tensor, runs: list[tuple[int, int]]) -> Iterator[np.ndarray]:
    """The rows of these runs as bytes, some at a time."""
    row = quants.row_bytes(tensor.kind, tensor.shape[-1])
    step = max(1, CHUNK_BYTES // row)
    with opened(Path(tensor.path)) as fd:
        for first, count in runs:
            for at in range(first, first + count, step):
                raw_RB = np.empty((min(step, first + count - at), row), np.uint8)
                read_into(fd, memoryview(raw_RB).cast("B"), tensor.at + at * row)
                yield raw_RB
