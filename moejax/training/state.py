"""All that a run is between two steps."""

import jax
import jax.numpy as jnp
from flax import struct

from moejax.model import forward as model


@struct.dataclass
class TrainState:
    """What is saved, restored and updated. Randomness is a function of the run's seed and `step`."""

    step: jax.Array  # i32; steps done, skipped updates too
    params: dict
    opt_state: tuple
    loss_state: tuple  # per loss: what its controller remembers
    applied: jax.Array  # i32; steps whose update was applied
    loss_mean: jax.Array  # f32; decaying sum of their losses, weights (1 - decay) * decay**age
    skipped: jax.Array  # i32; updates skipped in a row


def init(key, m, losses, optimizer) -> TrainState:
    """The state before the first step."""
    params = model.init(key, m)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        loss_state=tuple(loss.init(m) for loss in losses),
        applied=jnp.zeros((), jnp.int32),
        loss_mean=jnp.zeros((), jnp.float32),
        skipped=jnp.zeros((), jnp.int32),
    )
