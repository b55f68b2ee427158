"""Slot attention on TPU, in Pallas (Mosaic).

The kernel goes through a list of tiles, stretches of neighbouring rows of one slot. A tile walks over the
blocks of keys that it sees. A block's visible pages come by one DMA each, found through the prefetched page
table, into one of two buffers; while one is in use the next block is on its way, also that of the next tile:

    fetch | tile 0 block 0 | tile 0 block 1 | tile 1 block 0 | tile 2 block 5 |
    use   |                | tile 0 block 0 | tile 0 block 1 | tile 1 block 0 | ...

A tile of one row, as in decoding, multiplies only that row. Blocks lie at multiples of their length, so that
every row adds up the same blocks in the same order in any tile.

Heads narrower than 128 are stored padded by this chip, and only if the pages' layout is row-major; XLA likes
to give such arrays another one, which costs a copy of all pages per call: fix it where they are made.

Floor: visible pages are read once per tile: 4 G A bytes per key in bfloat16; 4 H A FLOPs per row and key.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.slot_attention.reference import visible
from pallas_kernels.slot_attention.rows import Tiles, live_rows, tiles_of
from pallas_kernels.varying import like

PLATFORM = "tpu"
DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))
LANES, SUBLANES = 128, 8
BLOCK_KEYS = 256
TILE_QUERIES = 128  # of one key head, padding included
LEAST = -0.5 * float(jnp.finfo(jnp.float32).max)  # a score that is none, but finite
MOST_VMEM = 40 * 2**20
MOST_SCALARS = 192 * 1024  # 4 bytes each, in 1 MiB of SMEM


class Sizes(NamedTuple):
    """What the kernel is made for."""

    G: int
    R: int  # query heads of a key head, padded
    A: int
    S: int
    K: int  # keys of a block
    T: int  # rows of a tile, at most
    J: int
    window: int | None = None
    scale: float = 1.0
    dtype: jnp.dtype = jnp.float32  # of the products


def sizes(q_NHA, page_PGSA, page_table_QJ) -> Sizes:
    """What the kernel is made for with these operands."""
    H, (_, G, S, A) = q_NHA.shape[1], page_PGSA.shape
    R = -(-(H // G) // SUBLANES) * SUBLANES
    return Sizes(G, R, A, S, max(BLOCK_KEYS // S, 1) * S, max(TILE_QUERIES // R, 1), page_table_QJ.shape[1])


def vmem(of: Sizes, itemsize: int) -> int:
    """Bytes of VMEM granted to the kernel."""
    lanes = -(-of.A // LANES) * LANES
    queries = of.G * of.T * of.R * 4
    blocks = 4 * of.G * of.K * lanes * itemsize
    spilled = 4 * of.T * of.R * (of.K + lanes) * 4
    return blocks + queries * (4 * lanes + 2 * LANES) + spilled + 4 * 2**20


def refusal(function, *operands, **static) -> str | None:
    """Why these operands cannot be served, or None."""
    q_NHA, page_k_PGSA, page_v_PGSA, slot_N, _, page_table_QJ = operands
    for x in (q_NHA, page_k_PGSA, page_v_PGSA):
        if jnp.dtype(x.dtype) not in DTYPES:
            return f"it multiplies {' and '.join(dtype.name for dtype in DTYPES)}, not {x.dtype.name}"
    of, itemsize = (
        sizes(q_NHA, page_k_PGSA, page_table_QJ),
        max(x.dtype.itemsize for x in (page_k_PGSA, page_v_PGSA)),
    )
    sublanes = SUBLANES * 4 // page_k_PGSA.dtype.itemsize
    if of.S % sublanes:
        return f"a page has {of.S} positions, which is no multiple of {sublanes}"
    if page_table_QJ.size + 4 * len(slot_N) > MOST_SCALARS:
        held = f"a page table of {page_table_QJ.shape} and {len(slot_N)} rows"
        return f"{held} do not fit in SMEM; use larger pages"
    if vmem(of, itemsize) > MOST_VMEM:
        return f"{of.G} key heads of width {of.A} in blocks of {of.K} do not fit in VMEM"
    return None


def attend(*operands, window, scale) -> jax.Array:
    """See `reference.attend`."""
    q_NHA, page_k_PGSA, page_v_PGSA, slot_N, position_N, page_table_QJ = operands
    of, (N, H, A) = sizes(q_NHA, page_k_PGSA, page_table_QJ), q_NHA.shape
    live_N = live_rows(slot_N, position_N, page_table_QJ, of.S)
    tiles, count = tiles_of(slot_N, position_N, live_N, of.T)
    # 32 bits and padded heads make a row of one head whole registers, which can begin anywhere
    q_NGRA = q_NHA.reshape(N, of.G, H // of.G, A).astype(jnp.float32)
    q_NGRA = jnp.pad(q_NGRA, ((0, 0), (0, 0), (0, of.R - H // of.G), (0, 0)))
    wide = jnp.promote_types(q_NHA.dtype, page_k_PGSA.dtype)
    call = pl.pallas_call(
        functools.partial(_kernel, of=of._replace(window=window, scale=scale, dtype=wide)),
        like(q_NHA, q_NGRA.shape, jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tiles) + 2,
            grid=(1,),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 3,
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            scratch_shapes=[
                pltpu.VMEM((2, of.T, of.G, of.R, A), jnp.float32),
                pltpu.VMEM((2, of.G, of.K, A), page_k_PGSA.dtype),
                pltpu.VMEM((2, of.G, of.K, A), page_v_PGSA.dtype),
                pltpu.VMEM((of.G, of.T * of.R, LANES), jnp.float32),
                pltpu.VMEM((of.G, of.T * of.R, LANES), jnp.float32),
                pltpu.VMEM((of.G, of.T * of.R, A), jnp.float32),
                pltpu.VMEM((of.T, of.G, of.R, A), jnp.float32),
                pltpu.SMEM((1,), jnp.int32),
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SemaphoreType.DMA,
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            ("arbitrary",), vmem_limit_bytes=vmem(of, page_k_PGSA.dtype.itemsize)
        ),
        name="slot_attention",
    )
    table = page_table_QJ.astype(jnp.int32).reshape(-1)
    o_NGRA = call(*tiles, count.reshape(1), table, q_NGRA, page_k_PGSA, page_v_PGSA)
    o_NHA = o_NGRA[:, :, : H // of.G].reshape(N, H, A)
    return jnp.where(live_N[:, None, None], o_NHA, 0).astype(q_NHA.dtype)


class _Refs(NamedTuple):
    """Everything that the kernel reads and writes."""

    tiles: Tiles
    num_tiles: jax.Array
    table: jax.Array
    q: jax.Array
    k: jax.Array
    v: jax.Array
    o: jax.Array
    q_buffer: jax.Array
    k_buffer: jax.Array
    v_buffer: jax.Array
    top: jax.Array
    sum: jax.Array
    acc: jax.Array
    o_buffer: jax.Array
    turn: jax.Array  # which block buffer is next
    block_done: jax.Array
    q_done: jax.Array
    o_done: jax.Array


def _seen_keys(tiles: Tiles, tile, window: int | None):
    """First and end key that a tile sees."""
    position = tiles.position_V[tile]
    first = 0 if window is None else jnp.maximum(position - window + 1, 0)
    return first, position + tiles.count_V[tile]


def _for_rows(refs: _Refs, tile, act) -> None:
    """Let `act(row, place in the tile)` run for the rows of a tile."""

    @pl.loop(0, refs.tiles.count_V[tile])
    def _(i):
        act(refs.tiles.first_V[tile] + i, i)


def _block_copies(refs: _Refs, of: Sizes, tile, block, buffer, act) -> None:
    """Let `act` start or await the copies of a block's visible pages."""
    first, end = _seen_keys(refs.tiles, tile, of.window)
    block_pages = of.K // of.S
    first_page = jnp.maximum(block * block_pages, first // of.S)
    end_page = jnp.minimum((block + 1) * block_pages, (end - 1) // of.S + 1)

    @pl.loop(first_page, end_page)
    def _(page):
        number = refs.table[refs.tiles.slot_V[tile] * of.J + page]
        at = pl.ds(pl.multiple_of((page - block * block_pages) * of.S, of.S), of.S)
        for pages, held in ((refs.k, refs.k_buffer), (refs.v, refs.v_buffer)):
            act(pltpu.make_async_copy(pages.at[number], held.at[buffer, :, at], refs.block_done.at[buffer]))


def _kernel(*flat, of: Sizes):
    """Tile after tile."""
    refs = _Refs(Tiles(*flat[:4]), *flat[4:])
    refs.turn[0] = 0
    pl.loop(0, refs.num_tiles[0])(functools.partial(_tile, refs, of))


def _tile(refs: _Refs, of: Sizes, tile) -> None:
    """One tile: its rows against the blocks that they see."""
    last = refs.num_tiles[0] - 1
    count, (first, end) = refs.tiles.count_V[tile], _seen_keys(refs.tiles, tile, of.window)
    start, wait = (lambda copy: copy.start()), (lambda copy: copy.wait())

    def q_copies(tile, act):
        at = lambda row, i: pltpu.make_async_copy(
            refs.q.at[row], refs.q_buffer.at[tile % 2, i], refs.q_done.at[tile % 2]
        )
        _for_rows(refs, tile, lambda row, i: act(at(row, i)))

    @pl.when(tile == 0)
    def _():
        q_copies(tile, start)
        _block_copies(refs, of, tile, first // of.K, 0, start)

    q_copies(tile, wait)

    @pl.when(tile < last)
    def _():
        q_copies(tile + 1, start)

    refs.top[...] = jnp.full_like(refs.top, LEAST)
    refs.sum[...] = jnp.zeros_like(refs.sum)
    refs.acc[...] = jnp.zeros_like(refs.acc)
    end_block = (end - 1) // of.K + 1

    @pl.loop(first // of.K, end_block)
    def _(block):
        buffer = refs.turn[0]
        refs.turn[0] = 1 - buffer
        ends = block + 1 == end_block
        following = jnp.minimum(jnp.where(ends, tile + 1, tile), last)
        first_of_following = _seen_keys(refs.tiles, following, of.window)[0] // of.K

        @pl.when(~ends | (tile < last))
        def _():
            next_block = jnp.where(ends, first_of_following, block + 1)
            _block_copies(refs, of, following, next_block, 1 - buffer, start)

        _block_copies(refs, of, tile, block, buffer, wait)
        _forget_unseen(refs.v_buffer.at[buffer], first - block * of.K, end - block * of.K)
        add = functools.partial(_add_block, refs, of, tile, block, buffer)
        pl.when(count == 1)(lambda: add(1))
        pl.when(count > 1)(lambda: add(of.T))

    for g in range(of.G):
        o_MA = refs.acc[g] / refs.sum[g][:, :1]
        refs.o_buffer[:, g] = o_MA.reshape(of.T, of.R, of.A)
    o_copy = lambda row, i: pltpu.make_async_copy(refs.o_buffer.at[i], refs.o.at[row], refs.o_done)
    _for_rows(refs, tile, lambda row, i: o_copy(row, i).start())
    _for_rows(refs, tile, lambda row, i: o_copy(row, i).wait())


def _forget_unseen(v_GKA, first, end) -> None:
    """Zero the values that no row of the tile sees: they may be NaN, and nothing times NaN is NaN."""
    K = v_GKA.shape[1]

    @pl.when((first > 0) | (end < K))
    def _():
        key = lax.broadcasted_iota(jnp.int32, v_GKA.shape[1:], 0)
        seen_KA = (key >= first) & (key < end)
        for g in range(v_GKA.shape[0]):
            v_GKA[g] = jnp.where(seen_KA, v_GKA[g], jnp.zeros_like(v_GKA[g]))


def _add_block(refs: _Refs, of: Sizes, tile, block, buffer, rows: int) -> None:
    """Add a block to the running softmax of a tile's first `rows` rows."""
    M = rows * of.R
    exact = lax.Precision.HIGHEST if of.dtype == jnp.float32 else None
    dot = lambda x, y, dim: lax.dot_general(
        x, y, (((1,), (dim,)), ((), ())), precision=exact, preferred_element_type=jnp.float32
    )
    row = jnp.minimum(lax.broadcasted_iota(jnp.int32, (M, of.K), 0) // of.R, refs.tiles.count_V[tile] - 1)
    key = block * of.K + lax.broadcasted_iota(jnp.int32, (M, of.K), 1)
    seen_MK = visible(key, refs.tiles.position_V[tile] + row, of.window)
    for g in range(of.G):
        q_MA = refs.q_buffer[tile % 2, :rows, g].reshape(M, of.A).astype(of.dtype)
        score_MK = dot(q_MA, refs.k_buffer[buffer, g].astype(of.dtype), 1) * of.scale
        score_MK = jnp.where(seen_MK, score_MK, LEAST)
        top_M1, sum_M1 = refs.top[g, :M][:, :1], refs.sum[g, :M][:, :1]
        new_M1 = jnp.maximum(top_M1, jnp.max(score_MK, axis=1, keepdims=True))
        weight_MK = jnp.where(seen_MK, jnp.exp(score_MK - new_M1), 0.0)
        kept_M1 = jnp.exp(top_M1 - new_M1)
        sum_M1 = sum_M1 * kept_M1 + jnp.sum(weight_MK, axis=1, keepdims=True)
        v_KA = refs.v_buffer[buffer, g].astype(of.dtype)
        refs.acc[g, :M] = refs.acc[g, :M] * kept_M1 + dot(weight_MK.astype(of.dtype), v_KA, 0)
        refs.top[g, :M] = jnp.broadcast_to(new_M1, (M, LANES))
        refs.sum[g, :M] = jnp.broadcast_to(sum_M1, (M, LANES))
