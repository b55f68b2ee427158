"""Lists of visits, made before a kernel starts: which of its programs works on what."""

import jax.numpy as jnp


def walk(first_S, count_S, most: int):
    """Visit `count` tiles from `first` on of every segment, then stay at the last one until `most` visits.

    Returns:
      (segment, tile, whether it is a visit of its own) of every visit.
    """
    stop_S = jnp.cumsum(count_S, dtype=jnp.int32)
    step_V = jnp.arange(most, dtype=jnp.int32)
    visit_V = jnp.minimum(step_V, stop_S[-1] - 1)
    segment_V = jnp.sum(stop_S[None, :] <= visit_V[:, None], axis=1, dtype=jnp.int32)
    return segment_V, visit_V + (first_S - stop_S + count_S)[segment_V], step_V == visit_V
