"""Segment attention on Hopper GPUs: what the kernels take, and what is done around them.

Padding may be NaN. In products over positions a share of zero does not remove it, so rows of padding are
zeroed before them, a pass that XLA joins to whatever makes the array. Everything else of padding is masked.
Rows past T, in the last tile, are zeros as the copy engine fills them in.
"""

import jax.numpy as jnp

from pallas_kernels.gpu_chips import this_chip
from pallas_kernels.segment_attention import gpu_backward, gpu_forward
from pallas_kernels.segment_attention.blocks import Segments, zero_padding
from pallas_kernels.segment_attention.gpu_parts import TILE, Tiles

PLATFORM = "cuda"
DTYPES = tuple(map(jnp.dtype, (jnp.bfloat16, jnp.float16)))
WIDTHS = (64, 128)
# what a computing thread's 240 registers hold beside its sums; for 128, the keys' kernel spills a few of them
FORWARD = {64: Tiles(128, 4), 128: Tiles(128, 2)}
QUERIES = {64: Tiles(128, 3), 128: Tiles(64, 4)}
KEYS = {64: Tiles(64, 4), 128: Tiles(64, 3)}


def forward(q_BTHA, k_BTGA, v_BTGC, segment_BT, *, window: int | None, scale: float):
    """See `reference`."""
    v_BTGC = zero_padding(segment_BT, v_BTGC)
    how = FORWARD[q_BTHA.shape[3]]
    operands = (q_BTHA, k_BTGA, v_BTGC, Segments.of(segment_BT, TILE))
    o_BTHC, lse_BHP = gpu_forward.forward(operands, window=window, scale=scale, how=how)
    return o_BTHC, lse_BHP[:, :, : q_BTHA.shape[1]], None


def backward(
    q_BTHA,
    k_BTGA,
    v_BTGC,
    segment_BT,
    lse_BHT,
    delta_BHT,
    d_o_BTHC,
    kept,
    *,
    window: int | None,
    scale: float,
):
    """See `reference`; the sums of scores begin at -lse and those of d_share at -delta, each in its unit."""
    del kept
    real_B1T, T = (segment_BT > 0)[:, None], segment_BT.shape[1]
    starts = (
        jnp.pad(jnp.where(real_B1T, x_BHT, 0), ((0, 0), (0, 0), (0, -T % TILE)))
        for x_BHT in (-lse_BHT / scale, -delta_BHT)
    )
    q_BTHA, k_BTGA, d_o_BTHC = (zero_padding(segment_BT, x) for x in (q_BTHA, k_BTGA, d_o_BTHC))
    operands = (q_BTHA, k_BTGA, v_BTGC, Segments.of(segment_BT, TILE), *starts, d_o_BTHC)
    static, A = {"window": window, "scale": scale}, q_BTHA.shape[3]
    d_q_BTHA = gpu_backward.queries(operands, **static, how=QUERIES[A])
    d_k_BTGA, d_v_BTGC = gpu_backward.keys(operands, **static, how=KEYS[A])
    return d_q_BTHA, d_k_BTGA, d_v_BTGC


def refusal(function: str, q_BTHA, k_BTGA, v_BTGC, *others, scale: float, **static) -> str | None:
    """Why these operands cannot be served, or None."""
    A, C = q_BTHA.shape[3], v_BTGC.shape[3]
    if not this_chip().hopper:
        return "it is for Hopper GPUs (compute capability 9.0)"
    if q_BTHA.dtype not in DTYPES:
        return f"its tensor cores multiply {' and '.join(map(str, DTYPES))}, not {q_BTHA.dtype}"
    if A != C or A not in WIDTHS:
        return f"heads are {A} wide and values {C}; it serves {' and '.join(map(str, WIDTHS))}, both alike"
    if scale <= 0:
        return f"scale={scale} is not positive, and the greatest score would not have the greatest share"
    return None
