"""The one compiled step that serves every scheduler: flat rows of many requests through their layers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from moejax.model import forward as decoder
from moejax.model import stack
from moejax.ops import norm
from moejax.ops.sampling import Likelihoods, SamplingRows, likelihoods, sample
from moejax.seams import Batch, Context, FlatRows, Side
from moejax.serving.plan import LAST, PARKED


@struct.dataclass
class Columns:
    """A plan on the device; see `plan.Plan`."""

    token_J: jax.Array
    source_J: jax.Array
    slot_J: jax.Array
    pos_J: jax.Array
    first_J: jax.Array
    stop_J: jax.Array
    emit_J: jax.Array
    park_J: jax.Array  # where a row that has not passed all layers is kept; past the end = nowhere
    page_QP: jax.Array
    likely: jax.Array  # bool scalar; somebody wants likelihoods


@struct.dataclass
class Served:
    """What a step leaves for the next one."""

    cache: Any  # pages of every layer
    last_Q: jax.Array  # i32; the token that every slot wrote last
    parked_XD: jax.Array  # rows between layers
    settings_Q: SamplingRows


@struct.dataclass
class Written:
    """What a step wrote: up to Y tokens."""

    row_Y: jax.Array  # i32; the row behind each; past the last row = none
    token_Y: jax.Array  # i32
    likelihoods: Likelihoods  # of each token
    load_L: jax.Array  # i32; distinct experts that rows met, per layer of experts


def start(m, num_slots: int, num_pages: int, page_size: int, num_parked: int) -> Served:
    """Before the first step."""
    specs = stack.page_specs(m, num_pages, page_size)
    cache = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), specs, is_leaf=stack.sp.is_spec)
    number = lambda value, dtype: jnp.full(num_slots, value, dtype)
    idle = {"temperature_B": 0.0, "top_k_B": 0, "top_p_B": 1.0, "seed_B": 0, "min_p_B": 0.0}
    kinds = {"top_k_B": "int32", "seed_B": "uint32"}
    settings = SamplingRows(**{name: number(x, kinds.get(name, "float32")) for name, x in idle.items()})
    parked = jnp.zeros((num_parked, m.width), m.dtype)
    return Served(cache, number(0, "int32"), parked, settings)


@functools.partial(jax.jit, static_argnames=("m", "page_size"), donate_argnames="served")
def step(params, sides, served: Served, columns: Columns, *, m, page_size: int) -> tuple[Served, Written]:
    """Run a plan.

    Args:
      params, sides: of the model `m`, a group per layer or scanned.
    """
    J, Q = len(columns.slot_J), len(served.last_Q)
    last_J = served.last_Q.at[columns.slot_J].get(mode="clip")
    token_J = jnp.where(columns.source_J == LAST, last_J, columns.token_J)
    h_BTD = _inputs(params, m, token_J, served, columns)
    there_J = columns.slot_J >= 0
    flat = FlatRows(columns.slot_J[None], columns.page_QP, page_size)
    batch = Batch(token_J[None], columns.pos_J[None], jnp.ones((1, J), jnp.int32), there_J[None], flat=flat)
    layers_BT = (columns.first_J[None], columns.stop_J[None])
    context = Context(batch, Side(), {}, None, layers_BT)
    sides = stack.no_side(m) if sides is None else sides
    h_BTD, cache, loads = stack.apply(params, m, h_BTD, context, sides, served.cache, _load)
    h_JD = h_BTD[0]
    parked_XD = served.parked_XD.at[columns.park_J].set(h_JD, mode="drop")
    (row_Y,) = jnp.nonzero(columns.emit_J, size=min(J, Q), fill_value=J)
    slot_Y = columns.slot_J.at[row_Y].get(mode="fill", fill_value=Q)
    logits_YV = _logits(params, m, h_JD.at[row_Y].get(mode="fill", fill_value=0))
    settings_Y = jax.tree.map(lambda x_Q: x_Q.at[slot_Y].get(mode="clip"), served.settings_Q)
    pos_Y = columns.pos_J.at[row_Y].get(mode="clip") + 1
    token_Y = sample(logits_YV, settings_Y, pos_Y)
    likely = likelihoods(logits_YV, token_Y, columns.likely)
    last_Q = served.last_Q.at[slot_Y].set(token_Y, mode="drop")
    load_L = jnp.concatenate(
        [jnp.ravel(load) for load in jax.tree.leaves(loads)] or [jnp.zeros(0, jnp.int32)]
    )
    return Served(cache, last_Q, parked_XD, served.settings_Q), Written(row_Y, token_Y, likely, load_L)


def _inputs(params, m, token_J, served: Served, columns: Columns):
    """[1, J, D]: what every row enters its first layer with."""
    embedded_JD = decoder.embed(params, m, token_J[None])[0]
    parked_JD = served.parked_XD.at[columns.park_J].get(mode="clip")
    return jnp.where((columns.source_J == PARKED)[:, None], parked_JD, embedded_JD)[None]


def _logits(params, m, h_YD):
    hidden_BTD = norm.apply(params["norm"], h_YD[None], m)
    return decoder.unembed(params, m, hidden_BTD)[0]


def _load(out, batch):
    """How many different experts the rows of a layer met; nothing after a dense ffn."""
    if out.routing is None:
        return {}
    num_experts = out.routing.score_BTE.shape[-1]
    met_E = jnp.zeros(num_experts + 1, bool).at[jnp.ravel(out.routing.expert_BTK)].set(True)
    return jnp.sum(met_E[:num_experts], dtype=jnp.int32)


@functools.partial(jax.jit, donate_argnames="served")
def begin(served: Served, slot, settings) -> Served:
    """A slot with the settings of a new request: a SamplingRows of single numbers."""
    put = lambda old_Q, new: old_Q.at[slot].set(new)
    return served.replace(settings_Q=jax.tree.map(put, served.settings_Q, settings))
