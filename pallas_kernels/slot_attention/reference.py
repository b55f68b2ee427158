"""The meaning of slot attention: every row gathers all pages of its slot; an oracle."""

import jax
import jax.numpy as jnp

from pallas_kernels.slot_attention.rows import live_rows

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def attend(*operands, window, scale) -> jax.Array:
    """o[n] = softmax(scale q[n] k^T) v over the visible positions of its slot; zero where inactive."""
    q_NHA, page_k_PGSA, page_v_PGSA, slot_N, position_N, page_table_QJ = operands
    (N, H, A), (P, G, S, _) = q_NHA.shape, page_k_PGSA.shape
    accum = accumulator(q_NHA)
    live_N = live_rows(slot_N, position_N, page_table_QJ, S)
    page_NJ = jnp.clip(page_table_QJ[jnp.where(live_N, slot_N, 0)], 0, P - 1)
    key_K = jnp.arange(page_NJ.shape[1] * S)
    seen_NK = visible(key_K[None, :], position_N[:, None], window) & live_N[:, None]

    def of_slot(page_PGSA):
        x_NGKA = jnp.swapaxes(page_PGSA[page_NJ], 1, 2).reshape(N, G, -1, A)
        return jnp.where(seen_NK[:, None, :, None], x_NGKA, 0).astype(accum)

    q_NGRA = q_NHA.reshape(N, G, H // G, A).astype(accum) * scale
    score_NGRK = jnp.einsum("NGRA,NGKA->NGRK", q_NGRA, of_slot(page_k_PGSA))
    weight_NGRK = jax.nn.softmax(score_NGRK, where=seen_NK[:, None, None], axis=-1)
    o_NGRA = jnp.einsum("NGRK,NGKA->NGRA", weight_NGRK, of_slot(page_v_PGSA))
    return jnp.where(live_N[:, None, None], o_NGRA.reshape(N, H, A), 0).astype(q_NHA.dtype)


def accumulator(x) -> jnp.dtype:
    """The type in which products of `x` are summed."""
    return jnp.promote_types(x.dtype, jnp.float32)


def visible(key, position, window: int | None):
    """Whether a row at a position sees a key; the two must broadcast."""
    seen = key <= position
    return seen if window is None else seen & (key > position - window)
