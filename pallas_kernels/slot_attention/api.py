"""Attention of the flat rows of many requests over a paged cache: decoding and prefill in one call.

Letters: N rows, H query heads, G key/value heads, A head width, P pages, S positions of a page, Q slots
(requests), J pages of a slot. Heads come before positions, so that what a head sees of a page is one matrix.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import implementations
from pallas_kernels.errors import NotServedError
from pallas_kernels.slot_attention import cpu, reference, tpu, triton
from pallas_kernels.slot_attention.rows import live_rows
from pallas_kernels.varying import vary_alike

IMPLEMENTATIONS = {"tpu": tpu, "triton": triton, "xla_blocks": cpu, "reference": reference}


def slot_attention(
    q_NHA,
    page_k_PGSA,
    page_v_PGSA,
    slot_N,
    position_N,
    page_table_QJ,
    *,
    window: int | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Let row n, at position_N[n] of request slot_N[n], attend to positions 0 to its own of that request.

    Rows may come in any order and number per slot: one of each is decoding, many at consecutive positions
    are a chunk of a prompt. Such neighbours share the pages that are fetched, and a row walks over its own
    visible pages only. Rows whose slot or position is outside the table are inactive: they give exact
    zeros. What no row may see is never used, NaN or not; page numbers there may be anything.

    Keys are summed in blocks at fixed positions, in order. So a row's result is the same, bit for bit,
    whatever other rows are in the call, wherever it stands among them, and however its prompt was cut into
    chunks. Across calls with another number of rows it holds as well where the platform's matrix product
    sums every row alike; the tests show it for all implementations.

    There is no derivative; sums are float32, or float64 for float64 operands.

    Args:
      q_NHA: queries; H is a multiple of G, and query head h reads key head h // (H / G).
      page_k_PGSA: keys of all requests; the rows' own are written already (`write_pages`).
      page_v_PGSA: values, likewise.
      slot_N: int; the request of each row. -1 or Q for an inactive row.
      position_N: int; the position of each row in its request.
      page_table_QJ: int; the page that holds positions j * S to (j + 1) * S - 1 of a slot.
      window: keys that a row looks back over, itself included; default: all.
      scale: of the scores; default: A ** -0.5.
      implementation: a key of `IMPLEMENTATIONS`; default: the best one of the platform.

    Returns:
      o_NHA, of q's type.

    Raises:
      ValueError: shapes that do not fit, a window below 1, or an unknown implementation.
      NotServedError: the implementation that was asked for cannot serve these operands, or a derivative
        is wanted.
    """
    _check(q_NHA, page_k_PGSA, page_v_PGSA, slot_N, position_N, page_table_QJ)
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1, which is the row itself; None is all keys")
    how = _How(window, q_NHA.shape[2] ** -0.5 if scale is None else float(scale), implementation)
    operands = map(jnp.asarray, (q_NHA, page_k_PGSA, page_v_PGSA, slot_N, position_N, page_table_QJ))
    return _attend(how, *vary_alike(*operands))


def write_pages(page_k_PGSA, page_v_PGSA, k_NGA, v_NGA, slot_N, position_N, page_table_QJ):
    """Write every row's key and value at its position; inactive rows write nowhere.

    Two rows at one position of a slot would race. Under jit with donated pages nothing else is copied.

    Returns:
      (page_k_PGSA, page_v_PGSA).

    Raises:
      ValueError: shapes that do not fit.
    """
    where = (slot_N, position_N, page_table_QJ)
    return write_page(page_k_PGSA, k_NGA, *where), write_page(page_v_PGSA, v_NGA, *where)


def write_page(page_PGSA, x_NGA, slot_N, position_N, page_table_QJ):
    """As `write_pages`, of keys alone, or of whatever else has pages.

    Raises:
      ValueError: shapes that do not fit.
    """
    _check(x_NGA, page_PGSA, page_PGSA, slot_N, position_N, page_table_QJ)
    num_pages, num_heads, page_size, _ = page_PGSA.shape
    if x_NGA.shape[1] != num_heads:
        raise ValueError(f"rows are {x_NGA.shape}, pages are {page_PGSA.shape}; expected [N, G, A]")
    if len(slot_N) == 1:  # XLA would make it another operation than a scatter, which copies all pages on CPU
        x_NGA, position_N = (jnp.concatenate([x, x]) for x in (x_NGA, position_N))
        slot_N = jnp.pad(slot_N, (0, 1), constant_values=-1)
    live_N = live_rows(slot_N, position_N, page_table_QJ, page_size)
    page_N = page_table_QJ[jnp.where(live_N, slot_N, 0), jnp.where(live_N, position_N, 0) // page_size]
    page_N = jnp.where(live_N, page_N, num_pages)  # where nothing is
    return page_PGSA.at[page_N, :, position_N % page_size].set(x_NGA.astype(page_PGSA.dtype), mode="drop")


class _How(NamedTuple):
    """What of a call is known when it is traced."""

    window: int | None
    scale: float
    implementation: str | None


def _check(q_NHA, page_k_PGSA, page_v_PGSA, slot_N, position_N, page_table_QJ) -> None:
    ranks = [x.ndim for x in (q_NHA, page_k_PGSA, page_v_PGSA, slot_N, position_N, page_table_QJ)]
    fits = ranks == [3, 4, 4, 1, 1, 2] and (
        page_k_PGSA.shape == page_v_PGSA.shape
        and q_NHA.shape[2] == page_k_PGSA.shape[3]
        and q_NHA.shape[1] % page_k_PGSA.shape[1] == 0
        and q_NHA.shape[0] == slot_N.shape[0] == position_N.shape[0]
    )
    if not fits:
        raise ValueError(
            f"rows are {q_NHA.shape}, pages {page_k_PGSA.shape} and {page_v_PGSA.shape}, slots "
            f"{slot_N.shape}, positions {position_N.shape}, page table {page_table_QJ.shape}; expected rows "
            "[N, H, A], pages [P, G, S, A], slots and positions [N] and a page table [Q, J], with H a "
            "multiple of G"
        )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(how: _How, q_NHA, *others):
    if 0 in (*q_NHA.shape, *others[0].shape, *others[-1].shape):
        return jnp.zeros_like(q_NHA)
    return implementations.run(
        IMPLEMENTATIONS, "attend", how.implementation, (q_NHA, *others), window=how.window, scale=how.scale
    )


@_attend.defjvp
def _no_derivative(how, operands, tangents):
    raise NotServedError("slot_attention has no derivative: it reads a cache; train with segment_attention")
