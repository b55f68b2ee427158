"""What the nnx and the linen module share: one Ffn strategy called outside a moejax model.

A model of moejax gives a router everything it knows. A Flax model gives the layer its input and whatever
fields of `RouteIn` it passes by name; the rest has these defaults:

    h_BTD, pre_BTD   the layer's input
    batch            one document per row, every token there unless `valid` says otherwise; ids are unknown
    side             nothing added to the routing
    key              no noise

Attention maps, states that go from layer to layer and parts that all layers share do not exist here, so a
layer that needs one is refused.
"""

import jax
import jax.numpy as jnp

from moejax.config import BlockConfig, Group, ModelConfig
from moejax.errors import UsageError
from moejax.seams import Batch, BlockOut, Memory, RouteIn, Side

ABSENT = ("mixing", "memory", "shared")  # fields of RouteIn that only a model of moejax has


def model_of(layer, width: int, num_layers: int, param_dtype: str) -> ModelConfig:
    """The settings that the layer's Specs depend on.

    Raises:
      UsageError: the layer needs what only a model of moejax has.
    """
    m = ModelConfig(2, width, (Group((BlockConfig(None, layer),), num_layers),), param_dtype=param_dtype)
    needed = sorted(_reads(layer) & set(ABSENT))
    needed += ["shared"] * bool(layer.shared) + [f"memory.carry[{name!r}]" for name in layer.carry_specs(m)]
    if needed:
        names = ", ".join(dict.fromkeys(needed))
        raise UsageError(
            f"this layer's router reads {names}, which a Flax model does not have; "
            "choose a scorer that reads only the layer's input, or use the layer in a moejax model"
        )
    return m


def _reads(layer) -> frozenset[str]:
    return layer.scorer.reads if hasattr(layer, "scorer") else frozenset()


def apply(layer, params, x, valid=None, **fields):
    """(y like x, Routing of leading dims [B, T]); x is [B, T, D], or [N, D] for one row of N tokens.

    Args:
      valid: bool [B, T] or [N]; absent tokens are not routed. All are there by default.
      fields: what else of `RouteIn` the model has, with its leading dims [B, T].
    """
    if "batch" in _reads(layer) and "batch" not in fields:
        raise UsageError("this layer's router reads token ids; pass batch=moejax.seams.Batch(...)")
    x_BTD = jnp.reshape(x, (-1, *x.shape[-2:]))
    valid_BT = None if valid is None else jnp.reshape(valid, x_BTD.shape[:2])
    known = {"h_BTD": x_BTD, "pre_BTD": x_BTD, "side": Side(), "key": None}
    known |= {"batch": _batch(x_BTD, valid_BT)} | fields
    i = RouteIn(x_BTD=x_BTD, mixing=None, memory=Memory(carry={}, cache={}), shared={}, **known)
    y_BTD, routing, _ = layer.apply(params, i)
    return y_BTD.reshape(x.shape), routing


def _batch(x_BTD, valid_BT=None) -> Batch:
    """One document per row, of unknown ids."""
    shape = x_BTD.shape[:2]
    valid_BT = jnp.ones(shape, bool) if valid_BT is None else valid_BT
    pos_BT = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    return Batch(jnp.zeros(shape, jnp.int32), pos_BT, valid_BT.astype(jnp.int32), valid_BT)


def routing_loss(loss, *routings, valid=None):
    """What one of `moejax.losses` says of the routing of some layers, times its weight.

    Args:
      loss: a loss that looks at the routing alone, such as `GlobalBalance(1e-2)`.
      routings: of every layer, as `with_routing` returned them.
      valid: as the layers were given it.
    """
    batch = _batch(routings[0].score_BTE, valid)
    seen = [loss.probe(BlockOut(None, None, routing), batch) for routing in routings]
    probes = (tuple(jax.tree.map(lambda x: x[None], one) for one in seen),)  # one group of unlike layers
    stats = loss.stats(None, None, probes, None, batch)
    return loss.weight * loss.total(stats, loss.init(None))[0]
