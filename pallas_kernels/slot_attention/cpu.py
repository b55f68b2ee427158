"""Slot attention out of plain XLA operations, made for CPU and correct everywhere.

Rows are cut into tiles: a stretch of neighbours of one slot reads its keys once, a row without neighbours is
a tile of one. Tiles are sorted by how many blocks of keys they see and taken a few at a time:

    while tiles are left:                              those that come together see about as many blocks
        while one of them sees another block:          dynamic trip counts
            gather the block, add it to a running softmax

Blocks lie at multiples of their length, so that every row adds up the same blocks in the same order whatever
tile it is in; one that it sees nothing of changes no bit. What remains is that a product must sum each of its
rows alike, however many there are. XLA's do so on CPU if there are at least two rows, in scores also no
multiple of 32, and if mixed values are a multiple of 64 wide; so they are padded.

Floor: a tile reads its visible keys and values once; a pass over the gathered copies comes on top.
Temporaries are a few times the rows and a few blocks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.slot_attention.reference import accumulator, visible
from pallas_kernels.slot_attention.rows import live_rows, stretches
from pallas_kernels.varying import vary, varying_axes

PLATFORM = None
BLOCK_KEYS = 128
TILE_ROWS = 16
FEW_ROWS = 3  # a stretch of so many rows is taken as lone rows
LONE_AT_ONCE, TILES_AT_ONCE = 16, 4
ROW_MULTIPLE, ODD_MULTIPLE, WIDTH_MULTIPLE = 4, 32, 64  # of the matrix products
LEAST = -0.5 * float(jnp.finfo(jnp.float32).max)  # a score that is none, but finite


class Cache(NamedTuple):
    """Pages, and which of them hold what."""

    k_PGSA: jax.Array
    v_PGSA: jax.Array
    table_QJ: jax.Array

    @property
    def block_pages(self) -> int:
        return max(BLOCK_KEYS // self.k_PGSA.shape[2], 1)

    @property
    def block_keys(self) -> int:
        return self.block_pages * self.k_PGSA.shape[2]

    def block(self, page_PGSA, slot_W, block_W) -> jax.Array:
        """Copy one block of keys or values per slot."""
        P, G, S, A = page_PGSA.shape
        page_WJ = block_W[:, None] * self.block_pages + jnp.arange(self.block_pages)[None, :]
        page_WJ = jnp.clip(self.table_QJ.at[slot_W[:, None], page_WJ].get(mode="clip"), 0, P - 1)
        # Whole pages: what is copied is contiguous, and heads change places only if a block has many pages.
        x_WJX = page_PGSA.reshape(P, -1).at[page_WJ].get(mode="promise_in_bounds")
        x_WGJSA = jnp.swapaxes(x_WJX.reshape(*page_WJ.shape, G, S, A), 1, 2)
        return x_WGJSA.reshape(len(slot_W), G, self.block_keys, A).astype(accumulator(page_PGSA))


class Rows(NamedTuple):
    """Queries, where they stand and how they look."""

    q_NHA: jax.Array
    slot_N: jax.Array
    position_N: jax.Array
    window: int | None
    scale: float


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def attend(*operands, window, scale) -> jax.Array:
    """See `reference.attend`."""
    q_NHA, page_k_PGSA, page_v_PGSA, slot_N, position_N, page_table_QJ = operands
    cache, N = Cache(page_k_PGSA, page_v_PGSA, page_table_QJ), len(slot_N)
    rows = Rows(q_NHA, slot_N.astype(jnp.int32), position_N.astype(jnp.int32), window, scale)
    live_N = live_rows(slot_N, position_N, page_table_QJ, page_k_PGSA.shape[2])
    first_N, count_N = stretches(rows.slot_N, rows.position_N, live_N, TILE_ROWS)
    lone_N = live_N & (count_N <= FEW_ROWS)
    o_NHA = vary(jnp.zeros(q_NHA.shape, accumulator(q_NHA)), varying_axes(q_NHA))
    o_NHA = _attend_tiles(o_NHA, rows, cache, lone_N.astype(jnp.int32), 1)
    if N > FEW_ROWS:
        size_N = jnp.where((first_N == jnp.arange(N)) & ~lone_N, count_N, 0)
        o_NHA = _attend_tiles(o_NHA, rows, cache, size_N, TILE_ROWS)
    return o_NHA.astype(q_NHA.dtype)


def _attend_tiles(o_NHA, rows: Rows, cache: Cache, size_N, most_rows: int):
    """`o_NHA` with the results of the tiles that begin at the rows where there is a size, longest first."""
    N = len(size_N)
    at_once = min(LONE_AT_ONCE if most_rows == 1 else TILES_AT_ONCE, N)
    first_block_N, end_block_N = _seen_blocks(rows.position_N, size_N, cache.block_keys, rows.window)
    order_N = jnp.argsort(jnp.where(size_N > 0, first_block_N - end_block_N, 1))
    tile_U, size_U = (jnp.pad(x, (0, -N % at_once)) for x in (order_N, size_N[order_N]))
    row_T = jnp.arange(most_rows)

    def body(carry):
        chunk, o_NHA = carry
        tile_W, size_W = (lax.dynamic_slice_in_dim(x, chunk * at_once, at_once) for x in (tile_U, size_U))
        row_WT = jnp.where(row_T[None, :] < size_W[:, None], tile_W[:, None] + row_T[None, :], N)
        o_WTHA = _attend_chunk(rows, cache, tile_W, size_W, most_rows)
        return chunk + 1, o_NHA.at[row_WT].set(o_WTHA, mode="drop")

    used = -(-jnp.sum(size_N > 0, dtype=jnp.int32) // at_once)
    return lax.while_loop(lambda carry: carry[0] < used, body, (jnp.zeros_like(used), o_NHA))[1]


def _seen_blocks(position, size, block_keys: int, window: int | None):
    """First and end block that `size` rows from a position on see."""
    first_key = 0 if window is None else jnp.maximum(position - window + 1, 0)
    return first_key // block_keys + jnp.zeros_like(position), (position + size - 1) // block_keys + 1


def _attend_chunk(rows: Rows, cache: Cache, tile_W, size_W, most_rows: int) -> jax.Array:
    """The results of tiles that begin at rows `tile_W`; rows past a tile's size give anything finite."""
    (_, H, A), G, K = rows.q_NHA.shape, cache.k_PGSA.shape[1], cache.block_keys
    W, T, R = len(tile_W), most_rows, H // G
    slot_W, position_W = rows.slot_N[tile_W], rows.position_N[tile_W]
    first_W, end_W = _seen_blocks(position_W, size_W, K, rows.window)
    end_W = jnp.where(size_W > 0, end_W, first_W)
    q_WTHA = (
        rows.q_NHA.at[tile_W[:, None] + jnp.arange(T)[None, :]]
        .get(mode="clip")
        .astype(accumulator(rows.q_NHA))
    )
    q_WGMA = jnp.swapaxes((q_WTHA * rows.scale).reshape(W, T, G, R, A), 1, 2).reshape(W, G, T * R, A)
    more = _padding(T * R)
    q_WGMA = jnp.pad(q_WGMA, ((0, 0), (0, 0), (0, more), (0, 0)))
    row_M = jnp.minimum(jnp.arange(T * R + more) // R, T - 1)
    position_WM1 = (position_W[:, None] + jnp.minimum(row_M[None, :], size_W[:, None] - 1))[..., None]

    def body(carry):
        step, top_WGM1, sum_WGM1, o_WGMA = carry
        block_W = jnp.minimum(first_W + step, end_W)
        key_WK = block_W[:, None] * K + jnp.arange(K)[None, :]
        seen_WMK = (
            visible(key_WK[:, None], position_WM1, rows.window) & (first_W + step < end_W)[:, None, None]
        )
        k_WGKA, v_WGKA = (cache.block(x, slot_W, block_W) for x in (cache.k_PGSA, cache.v_PGSA))
        v_WGKA = jnp.pad(v_WGKA, ((0, 0), (0, 0), (0, 0), (0, -A % WIDTH_MULTIPLE)))
        score_WGMK = jnp.where(seen_WMK[:, None], _scores(q_WGMA, k_WGKA), LEAST)
        new_WGM1 = jnp.maximum(top_WGM1, jnp.max(score_WGMK, axis=-1, keepdims=True))
        weight_WGMK = jnp.where(seen_WMK[:, None], jnp.exp(score_WGMK - new_WGM1), 0)
        kept_WGM1 = jnp.exp(top_WGM1 - new_WGM1)
        sum_WGM1 = sum_WGM1 * kept_WGM1 + _sum(weight_WGMK)
        o_WGMA = o_WGMA * kept_WGM1 + _mix(weight_WGMK, v_WGKA, jnp.any(seen_WMK, axis=1))
        return step + 1, new_WGM1, sum_WGM1, o_WGMA

    column = jnp.zeros_like(q_WGMA[..., :1])
    wide = jnp.zeros((*q_WGMA.shape[:-1], A + -A % WIDTH_MULTIPLE), q_WGMA.dtype)
    start = (jnp.zeros_like(end_W[0]), column + LEAST, column, vary(wide, varying_axes(q_WGMA)))
    steps = jnp.max(end_W - first_W)
    _, _, sum_WGM1, o_WGMA = lax.while_loop(lambda carry: carry[0] < steps, body, start)
    o_WGMA = (o_WGMA / jnp.where(sum_WGM1 > 0, sum_WGM1, 1))[:, :, : T * R, :A]
    return jnp.swapaxes(o_WGMA.reshape(W, G, T, R, A), 1, 2).reshape(W, T, H, A)


def _padding(rows: int) -> int:
    """Rows to add, so that products sum each of them as in any other call; see above."""
    more = -rows % ROW_MULTIPLE
    return more if (rows + more) % ODD_MULTIPLE else more + ROW_MULTIPLE


def _scores(q_WGMA, k_WGKA):
    """Keys come first, as then the few queries are what the product rearranges; XLA must not turn it back."""
    score_WGKM = lax.optimization_barrier(jnp.einsum("WGKA,WGMA->WGKM", k_WGKA, q_WGMA))
    return jnp.swapaxes(score_WGKM, 2, 3)


def _sum(x_WGMK):
    """[..., 1]: the sum over keys, by halves: the order of a reduction depends on how much there is."""
    while (K := x_WGMK.shape[-1]) > 1:
        half = K - K // 2
        high_WGMK = jnp.pad(x_WGMK[..., half:], ((0, 0), (0, 0), (0, 0), (0, 2 * half - K)))
        x_WGMK = x_WGMK[..., :half] + high_WGMK
    return x_WGMK


def _mix(weight_WGMK, v_WGKA, seen_WK):
    """Weighted values. Where nobody looks the weight is 0, which is not enough if the value is NaN."""
    product = lambda v_WGKA: jnp.einsum("WGMK,WGKA->WGMA", weight_WGMK, v_WGKA)
    mixed_WGMA = product(v_WGKA)
    return lax.cond(
        jnp.all(jnp.isfinite(mixed_WGMA)),
        lambda: mixed_WGMA,
        lambda: product(jnp.where(seen_WK[:, None, :, None], v_WGKA, 0)),
    )
