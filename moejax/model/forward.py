"""The whole decoder: embed, stack, unembed."""

import jax.numpy as jnp

from moejax import specs as sp
from moejax import weights
from moejax.model import stack
from moejax.ops import norm
from moejax.ops.cross_entropy import Unembedding
from moejax.seams import Context, Output, Side
from moejax.specs import Constant, Normal, Spec


def specs(m):
    """Parameters of the model `m`."""
    V, D = m.vocab, m.width
    tree = {
        # Small, so that a tied model does not begin by predicting the token it has just read.
        "embed": Spec((V, D), ("vocab", "embed"), Normal(0.02), m.param_dtype),
        "norm": norm.specs(m),
        **stack.specs(m),
    }
    if not m.tied:
        tree["unembed"] = Spec((V, D), ("vocab", "embed"), Normal(0.02), m.param_dtype)
    if m.unembed_bias:
        tree["unembed_bias"] = Spec((V,), ("vocab",), Constant(0.0), m.param_dtype)
    return tree


def init(key, m):
    """Fresh parameters of the model `m`; with a mesh, placed by its rules."""
    return sp.init(key, specs(m))


def init_cache(m, num_slots: int, length: int):
    """An empty cache for `num_slots` sequences of up to `length` positions."""
    specs = stack.cache_specs(m, num_slots, length)
    return sp.tree_map(lambda spec: jnp.zeros(spec.shape, spec.dtype), specs)


def embed(params, m, token_BT):
    """Rows of the embedding table, scaled; the scale is rounded to the dtype of activations."""
    return weights.rows(params["embed"], token_BT).astype(m.dtype) * m.embed_scale


def unembedding(params, m) -> Unembedding:
    """What turns hidden states into logits, ready to be used."""
    table_VD = weights.table(params["embed" if m.tied else "unembed"], m.dtype)
    return Unembedding(table_VD, params.get("unembed_bias"), m.logit_scale)


def unembed(params, m, hidden_BTD):
    """Logits in at least f32."""
    return unembedding(params, m).logits(hidden_BTD.astype(m.dtype))


def forward(params, m, batch, *, cache=None, sides=None, key=None, probe=None) -> Output:
    """Run the decoder.

    Args:
      params: as `specs(m)` declares.
      batch: Batch; with a cache, row b continues slot b at positions `pos_BT`.
      cache: from `init_cache`, or None to attend within the batch.
      sides: per group, per block: Side with leading layer dim; None adds nothing.
      key: for routers with noise; None = deterministic.
      probe: (BlockOut, Batch) -> small tree, stacked over layers in `Output.probes`.
    """
    sides = stack.no_side(m) if sides is None else sides
    probe = _see_nothing if probe is None else probe
    h_BTD = embed(params, m, batch.token_BT)
    h_BTD, cache, probes = stack.apply(params, m, h_BTD, Context(batch, Side(), {}, key), sides, cache, probe)
    hidden_BTD = norm.apply(params["norm"], h_BTD, m)
    return Output(hidden_BTD, unembed(params, m, hidden_BTD), cache, probes)


def _see_nothing(out, batch):
    return {}
