"""Causal attention within the segments of packed rows, with grouped key/value heads and sliding windows.

Letters: B rows, T positions, H query heads, G key/value heads, A head width of queries and keys, C head width
of values and results.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import implementations
from pallas_kernels.segment_attention import cpu, gpu, reference, tpu, triton
from pallas_kernels.varying import vary, vary_alike, varying_axes

IMPLEMENTATIONS = {"tpu": tpu, "hopper": gpu, "triton": triton, "xla_chunks": cpu, "reference": reference}


def segment_attention(
    q_BTHA,
    k_BTGA,
    v_BTGC,
    segment_BT,
    *,
    window: int | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Softmax attention of every query over the keys of its segment that are not later than it.

    Positions are places in the row: the query at t sees the key at s if s <= t, both have the same segment,
    and t - s < window. Rotary positions, if any, are in q and k already. The memory of the backward pass is
    linear in T; it recomputes the scores. Differentiable once, in q, k and v. Sums are in float32, or in
    float64 for float64 operands. Under a mesh with explicit axes every device works on its own rows and
    heads.

    Args:
      q_BTHA: queries; H is a multiple of G, and heads g * H/G to (g + 1) * H/G - 1 read key/value head g.
      k_BTGA: keys.
      v_BTGC: values; C may differ from A.
      segment_BT: int, 1 and more for segments, 0 and less for padding. A padding query gives zeros; padding
        gets no gradient, whatever its buffers hold (NaN too).
      window: how many keys a query looks back over, itself included; None = all.
      scale: multiplies the products of queries and keys; default A ** -0.5.
      implementation: a key of `IMPLEMENTATIONS`; default: the best one of the platform.

    Returns:
      o_BTHC, of the promoted type of q, k and v.

    Raises:
      ValueError: shapes, types or layouts that do not fit, or an unknown implementation.
      NotServedError: the implementation that was asked for cannot serve these operands.
    """
    how = _how(q_BTHA, window, scale, implementation)
    return _attend_anywhere(q_BTHA, k_BTGA, v_BTGC, segment_BT, how)[0]


def segment_attention_with_lse(
    q_BTHA,
    k_BTGA,
    v_BTGC,
    segment_BT,
    *,
    window: int | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`segment_attention` and lse_BHT, the logarithm of every softmax's sum; differentiable in both.

    Results over parts of the keys join by it: o = sum(exp(lse_i - lse) * o_i), lse = logaddexp of all. It is
    -inf where the query is padding.
    """
    how = _how(q_BTHA, window, scale, implementation)
    return _attend_anywhere(q_BTHA, k_BTGA, v_BTGC, segment_BT, how)


class _How(NamedTuple):
    """What of an attention is known when it is traced."""

    window: int | None
    scale: float
    implementation: str | None

    @property
    def static(self) -> dict:
        return {"window": self.window, "scale": self.scale}


def _how(q_BTHA, window, scale, implementation) -> _How:
    if window is not None and window < 1:
        raise ValueError(f"window={window}; expected at least 1, the query itself, or None for all keys")
    scale = max(q_BTHA.shape[-1], 1) ** -0.5 if scale is None else float(scale)
    return _How(window, scale, implementation)


def _check(q_BTHA, k_BTGA, v_BTGC, segment_BT) -> None:
    shapes = f"q is {q_BTHA.shape}, k is {k_BTGA.shape}, v is {v_BTGC.shape}, segments are {segment_BT.shape}"
    if (q_BTHA.ndim, k_BTGA.ndim, v_BTGC.ndim, segment_BT.ndim) != (4, 4, 4, 2):
        raise ValueError(f"{shapes}; expected [B, T, H, A], [B, T, G, A], [B, T, G, C] and [B, T]")
    (B, T, H, A), G = q_BTHA.shape, k_BTGA.shape[2]
    fits = k_BTGA.shape == (B, T, G, A) and v_BTGC.shape[:3] == (B, T, G) and segment_BT.shape == (B, T)
    if not fits or G == 0 or H % G:
        raise ValueError(
            f"{shapes}; expected [B, T, H, A], [B, T, G, A], [B, T, G, C] and [B, T], H a multiple of G"
        )
    if not jnp.issubdtype(segment_BT.dtype, jnp.integer):
        raise ValueError(f"segments are {segment_BT.dtype}; expected integers, 0 for padding")


def _attend_anywhere(q_BTHA, k_BTGA, v_BTGC, segment_BT, how: _How):
    """Check the operands; under a mesh with explicit axes let every device attend by itself."""
    _check(q_BTHA, k_BTGA, v_BTGC, segment_BT)
    dtype = jnp.result_type(q_BTHA, k_BTGA, v_BTGC)
    operands = *(jnp.asarray(x, dtype) for x in (q_BTHA, k_BTGA, v_BTGC)), jnp.asarray(segment_BT, jnp.int32)
    mesh = jax.typeof(operands[0]).sharding.mesh
    explicit = {
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit
    }
    if not explicit or mesh.size == 1:
        return _attend_here(*operands, how)
    batch, heads = _layout(*operands)
    rows = P(batch, None, heads, None)
    return jax.shard_map(
        lambda *local: _attend_here(*local, how),
        in_specs=(rows, rows, rows, P(batch, None)),
        out_specs=(rows, P(batch, heads, None)),
        axis_names=explicit,
        check_vma=True,
    )(*operands)


def _layout(q_BTHA, k_BTGA, v_BTGC, segment_BT):
    """Over which axes of the mesh the rows and the heads are split."""
    specs = [tuple(jax.typeof(x).sharding.spec) for x in (q_BTHA, k_BTGA, v_BTGC, segment_BT)]
    batch, _, heads, _ = specs[0]
    if specs != [(batch, None, heads, None)] * 3 + [(batch, None)]:
        shown = ", ".join(str(P(*spec)) for spec in specs)
        raise ValueError(
            f"q, k, v and segments are laid out as {shown}; expected rows split alike in all four, heads "
            "alike in q, k and v, and nothing else split; jax.reshard changes a layout"
        )
    return batch, heads


def _attend_here(q_BTHA, k_BTGA, v_BTGC, segment_BT, how: _How):
    (B, T, H, _), C = q_BTHA.shape, v_BTGC.shape[3]
    operands = (q_BTHA, k_BTGA, v_BTGC, segment_BT)
    axes = varying_axes(*operands)
    if 0 in (*q_BTHA.shape, C):
        precise = jnp.promote_types(q_BTHA.dtype, jnp.float32)
        o_BTHC, lse_BHT = jnp.zeros((B, T, H, C), q_BTHA.dtype), jnp.full((B, H, T), -jnp.inf, precise)
        return vary(o_BTHC, axes), vary(lse_BHT, axes)
    return _attend(*vary_alike(*operands), how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BTHA, k_BTGA, v_BTGC, segment_BT, how: _How):
    return _attend_forward(q_BTHA, k_BTGA, v_BTGC, segment_BT, how)[0]


def _attend_forward(q_BTHA, k_BTGA, v_BTGC, segment_BT, how: _How):
    operands = (q_BTHA, k_BTGA, v_BTGC, segment_BT)
    o_BTHC, lse_BHT, kept = implementations.run(
        IMPLEMENTATIONS, "forward", how.implementation, operands, **how.static
    )
    return (o_BTHC, lse_BHT), (*operands, o_BTHC, lse_BHT, kept)


def _attend_backward(how: _How, saved, cotangents):
    *operands, o_BTHC, lse_BHT, kept = saved
    d_o_BTHC, d_lse_BHT = cotangents
    # What all scores of a query have in common: d_score = share * (d_share - delta).
    delta_BTH = jnp.sum(d_o_BTHC.astype(lse_BHT.dtype) * o_BTHC.astype(lse_BHT.dtype), axis=-1)
    delta_BHT = jnp.swapaxes(delta_BTH, 1, 2) - d_lse_BHT
    operands = (*operands, lse_BHT, delta_BHT, d_o_BTHC, kept)
    return *implementations.run(IMPLEMENTATIONS, "backward", how.implementation, operands, **how.static), None


_attend.defvjp(_attend_forward, _attend_backward)
