"""Grouped products on TPU, in Pallas (Mosaic).

Rows are cut into tiles of a fixed height, whatever the groups are, so that nothing is moved or padded. A
kernel walks over visits: pairs of a tile and a group that has rows in it. The list of visits is made before
the kernel starts and prefetched as scalars, so that the pipeline knows early which blocks come next:

    rows    0 0 0 1 | 1 1 1 1 | 1 2 2 . |          three tiles, four rows each; nobody has the last row
    visits  0   1     1         1 2                (tile 0, group 0), (0, 1), (1, 1), (2, 1), (2, 2)

A visit keeps of its product the rows that are its group's and leaves those that earlier visits wrote. The
list has a fixed length, the most that there can be; spare visits at its end fetch and compute nothing.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul import tpu_tiles
from pallas_kernels.grouped_matmul.tpu_tiles import Problem, Tiles, most_visits
from pallas_kernels.grouped_matmul.visits import walk
from pallas_kernels.tpu_chips import this_chip
from pallas_kernels.varying import like

PLATFORM = "tpu"
DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))


class Visits(NamedTuple):
    """Pairs of a tile and a group, in the order of the rows."""

    group_V: jax.Array
    tile_V: jax.Array
    start_V: jax.Array  # first row of the group, counted from the tile's first
    end_V: jax.Array  # where start >= end there is nothing to compute
    read_V: jax.Array  # the tile of lhs that is fetched; where there is nothing to compute, a neighbour's


def matmul(lhs_MK, rhs, start_G, end_G, *scales, transpose_rhs: bool, dtype) -> jax.Array:
    """See `reference.matmul`."""
    (M, K), G, N = lhs_MK.shape, rhs.shape[0], rhs.shape[1 if transpose_rhs else 2]
    problem = Problem(M, K, N, G, lhs_MK.dtype.itemsize, jnp.dtype(dtype).itemsize)
    tiles, vmem = _tiles(tpu_tiles.MATMUL, problem)
    visits = visit_tiles(start_G, end_G, M, tiles.m)
    tiles_k = pl.cdiv(K, tiles.k)

    def computed_k(v, k, visits):
        """Where there is nothing to compute, stay at the last block instead of fetching all of them."""
        return jnp.where(visits.start_V[v] < visits.end_V[v], k, tiles_k - 1)

    def lhs_block(n, v, k, *visits):
        visits = Visits(*visits)
        return visits.read_V[v], computed_k(v, k, visits)

    def rhs_block(n, v, k, *visits):
        visits = Visits(*visits)
        k = computed_k(v, k, visits)
        return (visits.group_V[v], n, k) if transpose_rhs else (visits.group_V[v], k, n)

    def out_block(n, v, k, *visits):
        return Visits(*visits).tile_V[v], n

    def scale_block(n, v, k, *visits):
        return Visits(*visits).group_V[v], 0, n

    rhs_tile = (None, tiles.n, tiles.k) if transpose_rhs else (None, tiles.k, tiles.n)
    scale_specs = [pl.BlockSpec((None, 1, tiles.n), scale_block) for _ in scales]
    call = pl.pallas_call(
        functools.partial(_matmul_kernel, K=K, transpose_rhs=transpose_rhs, scaled=bool(scales)),
        like(lhs_MK, (M, N), dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits),
            grid=(pl.cdiv(N, tiles.n), len(visits.group_V), tiles_k),
            in_specs=[
                pl.BlockSpec((tiles.m, tiles.k), lhs_block),
                pl.BlockSpec(rhs_tile, rhs_block),
                *scale_specs,
            ],
            out_specs=pl.BlockSpec((tiles.m, tiles.n), out_block),
            scratch_shapes=[pltpu.VMEM((tiles.m, tiles.n), jnp.float32)] if tiles_k > 1 else [],
        ),
        compiler_params=pltpu.CompilerParams(("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=vmem),
        name="grouped_matmul",
    )
    return call(*visits, lhs_MK, rhs, *(scale_GN[:, None, :] for scale_GN in scales))


scaled_matmul = matmul  # scales are one more operand


def outer(lhs_MK, rhs_MN, start_G, end_G, dtype) -> jax.Array:
    """See `reference.outer`."""
    (M, K), G, N = lhs_MK.shape, start_G.shape[0], rhs_MN.shape[1]
    problem = Problem(M, K, N, G, lhs_MK.dtype.itemsize, jnp.dtype(dtype).itemsize)
    tiles, vmem = _tiles(tpu_tiles.OUTER, problem)
    visits = visit_groups(start_G, end_G, M, tiles.m)
    call = pl.pallas_call(
        _outer_kernel,
        like(lhs_MK, (G, K, N), dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits),
            grid=(pl.cdiv(N, tiles.n), pl.cdiv(K, tiles.k), len(visits.group_V)),
            in_specs=[
                pl.BlockSpec((tiles.m, tiles.k), lambda n, k, v, *visits: (Visits(*visits).read_V[v], k)),
                pl.BlockSpec((tiles.m, tiles.n), lambda n, k, v, *visits: (Visits(*visits).read_V[v], n)),
            ],
            out_specs=pl.BlockSpec(
                (None, tiles.k, tiles.n), lambda n, k, v, *visits: (Visits(*visits).group_V[v], k, n)
            ),
            scratch_shapes=[pltpu.VMEM((tiles.k, tiles.n), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(("parallel", "parallel", "arbitrary"), vmem_limit_bytes=vmem),
        name="grouped_outer",
    )
    return call(*visits, lhs_MK, rhs_MN)


def refusal(function: str, lhs_MK, rhs, start_G, end_G, *scale, dtype, **others) -> str | None:
    """Why these operands cannot be served, or None."""
    names = " and ".join(dtype.name for dtype in DTYPES)
    for used in (lhs_MK.dtype, dtype):
        if jnp.dtype(used) not in DTYPES:
            return f"it multiplies {names}, not {jnp.dtype(used).name}"
    num_rows, num_groups = lhs_MK.shape[0], start_G.shape[0]
    if tpu_tiles.most_visits(num_rows, num_groups, tpu_tiles.MOST_ROWS) > tpu_tiles.VISITS_IN_SMEM:
        return f"the visits of {num_rows} rows in {num_groups} groups do not fit in SMEM"
    return None


def visit_tiles(start_G, end_G, num_rows: int, rows: int) -> Visits:
    """For `matmul`: every tile at least once, with every group that has rows in it."""
    tiles, num_groups = pl.cdiv(num_rows, rows), len(start_G)
    first_G, count_G = _tiles_of_groups(start_G, end_G, rows)
    # tiles of nobody, before and behind the groups, are visited too: to write zeros
    held_G = count_G > 0
    nobody = ~jnp.any(held_G)
    before = jnp.where(nobody, tiles, start_G[:1] // rows)
    behind = jnp.where(nobody, tiles, -(-end_G[-1:] // rows))
    first_S = jnp.concatenate([jnp.zeros_like(before), first_G, behind])
    count_S = jnp.concatenate([before, count_G, tiles - behind])
    segment_V, tile_V, real_V = walk(first_S, count_S, most_visits(num_rows, min(num_groups, num_rows), rows))
    # they fetch no matrix of their own either
    first_held, last_held = jnp.argmax(held_G), num_groups - 1 - jnp.argmax(held_G[::-1])
    group_V = jnp.clip(segment_V - 1, first_held, last_held).astype(jnp.int32)
    return _visits(group_V, tile_V, real_V, start_G, end_G, rows)


def visit_groups(start_G, end_G, num_rows: int, rows: int) -> Visits:
    """For `outer`: every group at least once, with every tile in which it has rows."""
    first_G, count_G = _tiles_of_groups(start_G, end_G, rows)
    first_G = jnp.minimum(first_G, pl.cdiv(num_rows, rows) - 1)
    most = most_visits(num_rows, len(start_G), rows)
    return _visits(*walk(first_G, jnp.maximum(count_G, 1), most), start_G, end_G, rows)


def _tiles_of_groups(start_G, end_G, rows: int):
    """First tile of each group and how many have rows of it."""
    first_G = start_G // rows
    return first_G, jnp.where(start_G < end_G, -(-end_G // rows) - first_G, 0)


def _visits(group_V, tile_V, real_V, start_G, end_G, rows: int) -> Visits:
    within = lambda row_G: jnp.where(real_V, jnp.clip(row_G[group_V] - tile_V * rows, 0, rows), 0)
    # rows of nobody are not fetched: a neighbour's are there already
    first, last = start_G[0] // rows, jnp.maximum(end_G[-1] - 1, 0) // rows
    read_V = jnp.clip(tile_V, jnp.minimum(first, last), last)
    return Visits(group_V, tile_V, within(start_G), within(end_G), read_V)


def _tiles(op: tpu_tiles.Op, problem: Problem) -> tuple[Tiles, int]:
    """The tiles and the bytes of VMEM that they need."""
    tiles = tpu_tiles.choose(op, problem, this_chip())
    return tiles, op.vmem(problem, tiles)


def dot(left, right, contracted: tuple[int, int]):
    """A product summed in float32; float32 operands are not rounded, which the matrix unit would do."""
    exact = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dims = (((contracted[0],), (contracted[1],)), ((), ()))
    return lax.dot_general(left, right, dims, precision=exact, preferred_element_type=jnp.float32)


def keep(tile, dim: int, start, end):
    """Zero all of a tile but what lies in [start, end) of one dim, also if it is NaN."""
    at = lax.broadcasted_iota(jnp.int32, tile.shape, dim)
    return jnp.where((at >= start) & (at < end), tile, jnp.zeros_like(tile))


def _matmul_kernel(*refs, K: int, transpose_rhs: bool, scaled: bool):
    """One visit's part of a tile of the result, for one block of the contracted width."""
    visits, (lhs, rhs, *refs) = Visits(*refs[: len(Visits._fields)]), refs[len(Visits._fields) :]
    scales, out, sums = refs[:scaled], refs[scaled], refs[scaled + 1 :]
    v, k = pl.program_id(1), pl.program_id(2)
    tile_k, last_k = lhs.shape[1], pl.num_programs(2) - 1
    start, end = visits.start_V[v], visits.end_V[v]
    first_of_tile = (v == 0) | (visits.tile_V[jnp.maximum(v - 1, 0)] != visits.tile_V[v])

    @pl.when(first_of_tile & (k == 0))
    def _():
        out[...] = jnp.zeros_like(out)

    def product():
        left, right = lhs[...], rhs[...].astype(lhs.dtype)
        if K % tile_k:  # what is behind the arrays may be NaN
            left = keep(left, 1, 0, K - k * tile_k)
            right = keep(right, 1 if transpose_rhs else 0, 0, K - k * tile_k)
        return dot(left, right, (1, 1 if transpose_rhs else 0))

    def write(product_mn):
        for scale in scales:
            product_mn *= scale[...]
        row = lax.broadcasted_iota(jnp.int32, product_mn.shape, 0)
        out[...] = jnp.where((row >= start) & (row < end), product_mn.astype(out.dtype), out[...])

    @pl.when(start < end)
    def _():
        if not sums:
            write(product())
            return
        (sum_mn,) = sums

        @pl.when(k == 0)
        def _():
            sum_mn[...] = jnp.zeros_like(sum_mn)

        sum_mn[...] += product()

        @pl.when(k == last_k)
        def _():
            write(sum_mn[...])


def _outer_kernel(*refs):
    """Add one visit's rows to a block of its group's matrix."""
    visits, (lhs, rhs, out, sum_kn) = Visits(*refs[: len(Visits._fields)]), refs[len(Visits._fields) :]
    v, last = pl.program_id(2), pl.num_programs(2) - 1
    group, start, end = visits.group_V[v], visits.start_V[v], visits.end_V[v]

    @pl.when((v == 0) | (visits.group_V[jnp.maximum(v - 1, 0)] != group))
    def _():
        sum_kn[...] = jnp.zeros_like(sum_kn)

    @pl.when((start == 0) & (end == lhs.shape[0]))
    def _():
        sum_kn[...] += dot(lhs[...], rhs[...], (0, 0))

    @pl.when((start < end) & (end - start < lhs.shape[0]))
    def _():
        sum_kn[...] += dot(keep(lhs[...], 0, start, end), keep(rhs[...], 0, start, end), (0, 0))

    @pl.when((v == last) | (visits.group_V[jnp.minimum(v + 1, last)] != group))
    def _():
        out[...] = sum_kn[...].astype(out.dtype)
