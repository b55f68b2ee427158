"""Arrays on disk: the thin layer over Orbax that writes and reads a flat dict of named arrays.

Orbax copies the arrays to the host before `write` returns its futures, so the caller may donate or
overwrite them from then on; each process writes its own shards; a reader names any sharding it likes.
"""

import asyncio
import logging
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from moejax.training.leaves import original_form, stored_form


def _is_no_repetition(record: logging.LogRecord) -> bool:
    """Orbax logs the whole trace of an error that it raises as well; who catches it says it in one line."""
    return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts


logging.getLogger("absl").addFilter(_is_no_repetition)


class ArrayFiles:
    """Writes and reads directories of arrays."""

    def __init__(self):
        self._handler = ocp.PyTreeCheckpointHandler()

    def write(self, directory: Path, named: dict[str, Any]) -> list[Any]:
        """Copy the arrays to the host and begin to write them; the futures end when they are written."""
        stored = {name: stored_form(leaf) for name, leaf in named.items() if leaf.size}
        if not stored:  # Orbax refuses the empty tree, and arrays without elements
            return []
        save = self._handler.async_save(epath.Path(directory), args=ocp.args.PyTreeSave(stored))
        return asyncio.run(save) or []

    def finalize(self, directory: Path) -> None:
        """Merge what the processes wrote; for process 0, after the futures of all of them."""
        if any(directory.iterdir()):
            self._handler.finalize(epath.Path(directory))

    def read(self, directory: Path, wanted: dict[str, Any]) -> dict[str, Any]:
        """Read the arrays that `wanted` names, and no others.

        Args:
            wanted: ShapeDtypeStructs or arrays. With a sharding the result has it; a ShapeDtypeStruct
                without one gives an uncommitted jax.Array, a numpy array gives a numpy array.
        """
        stored = {name: stored_form(leaf) for name, leaf in wanted.items() if math.prod(leaf.shape)}
        found = {}
        if stored:
            args = {name: _restore_args(leaf) for name, leaf in stored.items()}
            read = ocp.args.PyTreeRestore(item=stored, restore_args=args, partial_restore=True)
            found = self._handler.restore(epath.Path(directory), args=read)
        return {name: _as_wanted(found.get(name), leaf) for name, leaf in wanted.items()}


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _as_wanted(stored: Any, like: Any) -> Any:
    if stored is None:
        form = stored_form(like)
        stored = np.zeros(form.shape, form.dtype)
    if isinstance(like, np.ndarray):
        return stored
    if not isinstance(stored, jax.Array):
        stored = jax.device_put(stored, getattr(like, "sharding", None))
    return original_form(stored, like)
