"""A GGUF file again, its tensors in float32: its reader rounds no activation to the type of a weight."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moejax.interop.gguf.quants import Kind
from moejax.interop.gguf.source import GgufFile
from moejax.interop.gguf.write import Outgoing, write_gguf

NUMBERS = 1 << 22  # of a tensor that are in memory at once
FLOAT32 = {"general.file_type": 0}


def expand(file: GgufFile, path: Path) -> None:
    """Write `file` to `path` with every tensor in F32; metadata stay as they are."""
    metadata = {key: value for key, value in file.metadata.items() if not key.startswith("split.")}
    tensors = [
        Outgoing(name, tensor.shape, Kind.F32, lambda name=name: _parts(file, name))
        for name, tensor in file.tensors.items()
    ]
    write_gguf(path, metadata | FLOAT32, tensors)


def _parts(file: GgufFile, name: str) -> Iterator[np.ndarray]:
    shape = file.info(name).shape
    if len(shape) == 1:
        yield file.read(name)
        return
    step = max(1, NUMBERS // int(np.prod(shape[1:])))
    for at in range(0, shape[0], step):
        yield file.read(name, (slice(at, at + step),))
