"""Silent data corruption: one step computed twice must give the same bits.

Megatron's rerun state machine asks the same question (Megatron-LM, `rerun_state_machine.py`): a result that
differs on the same device and inputs is a hardware fault; a third run tells a transient from a lasting one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from moejax.specs import path_name
from moejax.training import faults


def checked_step(step, state, batch, number: int):
    """(`step(state, batch)`, what went wrong or None); `step` may donate its state.

    The first two runs work on copies. If they differ, the third decides and is the one returned.
    """
    first, _ = step(faults.flip(number, _copy(state)), batch)
    second, metrics = step(_copy(state), batch)
    leaf = _first_difference(first, second)
    if leaf is None:
        return (second, metrics), None
    third, metrics = step(state, batch)
    lasting = _first_difference(first, third) and _first_difference(second, third)
    kind = "lasting: no two of three runs agree" if lasting else "transient: two of three runs agree"
    return (
        third,
        metrics,
    ), f"step {number} gave different bits for {leaf} when it was computed again ({kind})"


def _copy(state):
    return jax.tree.map(jnp.copy, state)


def _first_difference(a, b) -> str | None:
    """The first leaf whose bits differ on any process; all of them learn it, as all must repeat the step."""
    differs = np.array([_differs(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)])
    if jax.process_count() > 1:
        differs = np.any(multihost_utils.process_allgather(differs), axis=0)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(a)]
    return path_name(paths[np.argmax(differs)]) if differs.any() else None


def _differs(x, y) -> bool:
    """Whether this process has other bits for `x` than for `y`."""
    shards = zip(x.addressable_shards, y.addressable_shards, strict=True)
    return any(np.asarray(s.data).tobytes() != np.asarray(t.data).tobytes() for s, t in shards)
