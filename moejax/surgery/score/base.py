"""What scores of experts share: a pass over text that sums what a function sees at each router."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from moejax.config import require
from moejax.model import forward, stack


@struct.dataclass
class Seen:
    """One router's decisions about a batch, tokens flat."""

    logit_NE: jax.Array
    expert_NK: jax.Array
    gate_NK: jax.Array
    valid_N: jax.Array


def mean_over_tokens(measure, params, m, batches, sides=None, given=None):
    """Per group, per block: the mean of `measure` over all tokens, f64 [repeat, ...]; None without router.

    Args:
      measure: (Seen, given of that layer) -> f32 [N, ...]; absent tokens are left out here. Equal ones (by
        hash) share a program.
      batches: Batches of one shape each compile once; every token counts the same, however it is batched.
      given: per group, per block: array [repeat, ...] or None; what each layer's measure is given.

    Raises:
      UsageError: there is no token, or the model has no routers.
    """
    sides = stack.no_side(m) if sides is None else sides
    total, tokens = None, 0
    for batch in batches:
        sums = _sums(_routed(params, batch, sides, m=m), given, measure=measure)
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        tokens += int(np.sum(np.asarray(batch.valid_BT)))
    require(tokens > 0, "there is no token to score experts with; give at least one batch of text")
    require(bool(jax.tree.leaves(total)), "the model has no routers, so there are no experts to score")
    return jax.tree.map(lambda x: x / tokens, total)


def per_expert(value_NK, expert_NK, num_experts: int):
    """value_NE: what each expert has of a token's values; expert E is nowhere."""
    hit_NKE = expert_NK[..., None] == jnp.arange(num_experts)[None, None]
    return jnp.sum(jnp.where(hit_NKE, value_NK[..., None], 0), axis=1)


@functools.partial(jax.jit, static_argnames="m")
def _routed(params, batch, sides, *, m):
    """What is seen at every router; one program for all measures."""
    return forward.forward(params, m, batch, sides=sides, probe=_probe).probes


@functools.partial(jax.jit, static_argnames="measure")
def _sums(probes, given, *, measure):
    def one(seen, own):
        if not seen:
            return None
        value_LN = jax.vmap(measure, in_axes=(0, None if own is None else 0))(Seen(**seen), own)
        valid_LN = seen["valid_N"].reshape(*value_LN.shape[:2], *(1,) * (value_LN.ndim - 2))
        return jnp.sum(jnp.where(valid_LN, value_LN, 0), axis=1)

    given = tuple((None,) * len(group) for group in probes) if given is None else given
    return tuple(tuple(map(one, *pair)) for pair in zip(probes, given, strict=True))


def _probe(out, batch):
    if out.routing is None:
        return {}
    flat = lambda x_BTX: x_BTX.reshape(-1, x_BTX.shape[-1])
    routing = out.routing
    return {
        "logit_NE": flat(routing.logit_BTE),
        "expert_NK": flat(routing.expert_BTK),
        "gate_NK": flat(routing.gate_BTK),
        "valid_N": batch.valid_BT.reshape(-1),
    }
