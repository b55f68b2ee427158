"""The other processes of a run, and how they agree; with one process every call is free."""

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

_TIMEOUT_SECONDS = 600
# How Gloo, NCCL and JAX's coordination service say that another process is gone.
_LOST_WORDS = ("by peer", "remote process exited", "Broken pipe", "heartbeat", "unhealthy", "UNAVAILABLE")


def is_loss(error: BaseException) -> bool:
    """Whether `error` says that another process of the run is gone."""
    return jax.process_count() > 1 and any(word in str(error) for word in _LOST_WORDS)


class Peers:
    """All processes of the run, this one included."""

    def __init__(self):
        self.index = jax.process_index()
        self.count = jax.process_count()
        self._wait = ocp.multihost.get_barrier_sync_fn()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that names, deletes and commits."""
        return self.index == 0

    def barrier(self, name: str) -> None:
        """Wait for all processes; for any thread, as no device takes part. `name` is used once only."""
        self._wait(key=f"moejax/{name}", timeout_ms=_TIMEOUT_SECONDS * 1000)

    def from_first(self, value: int) -> int:
        """Process 0's value, in every process; for the main thread."""
        return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if self.count > 1 else value

    def total(self, value: int) -> int:
        """The sum over all processes; for the main thread."""
        return int(multihost_utils.process_allgather(np.int32(value)).sum()) if self.count > 1 else value
