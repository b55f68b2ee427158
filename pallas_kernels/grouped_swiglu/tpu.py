"""Gated grouped products on TPU: one Pallas (Mosaic) kernel with a block of either matrix.

It walks over the visits of `grouped_matmul.tpu`. Every tile of rows is fetched once for both products, which
meet in VMEM: neither is written to the main memory, unless it is kept for the backward pass. Against separate
products that saves, of R rows, one reading of R D and, kept or not, two readings of R F and, unless they are
kept, the writing too. Tokens are gathered into rows by the kernel of `permute` before.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul import tpu as products
from pallas_kernels.grouped_matmul import tpu_tiles
from pallas_kernels.grouped_matmul.tpu import Visits
from pallas_kernels.grouped_swiglu import composed
from pallas_kernels.grouped_swiglu.activations import gated
from pallas_kernels.grouped_swiglu.tpu_tiles import SWIGLU
from pallas_kernels.tpu_chips import this_chip
from pallas_kernels.varying import like

PLATFORM = "tpu"

backward = functools.partial(composed.backward, implementation="tpu")


def refusal(function: str, *operands, **static) -> str | None:
    """Why these operands cannot be served, or None."""
    x_ND, source_R, gate_GDF, _, start_G, end_G = operands[-6:] if function == "forward" else operands[1:7]
    rows_RD = x_ND
    if source_R is not None:
        rows_RD = jax.ShapeDtypeStruct((len(source_R), x_ND.shape[1]), x_ND.dtype)
    return products.refusal("matmul", rows_RD, gate_GDF, start_G, end_G, dtype=x_ND.dtype)


def forward(x_ND, source_R, gate_GDF, up_GDF, start_G, end_G, *, activation, keep):
    """See `reference.forward`."""
    rows_RD = composed.rows(x_ND, source_R)
    (R, D), (G, _, F) = rows_RD.shape, gate_GDF.shape
    num_results = 3 if keep else 1
    problem = tpu_tiles.Problem(R, D, F, G, x_ND.dtype.itemsize, num_results * x_ND.dtype.itemsize)
    tiles = tpu_tiles.choose(SWIGLU, problem, this_chip())
    visits = products.visit_tiles(start_G, end_G, R, tiles.m)
    tiles_k = pl.cdiv(D, tiles.k)

    def computed_k(v, k, visits):
        """Where there is nothing to compute, stay at the last block instead of fetching all of them."""
        return jnp.where(visits.start_V[v] < visits.end_V[v], k, tiles_k - 1)

    def rows_block(n, v, k, *visits):
        visits = Visits(*visits)
        return visits.read_V[v], computed_k(v, k, visits)

    def matrix_block(n, v, k, *visits):
        visits = Visits(*visits)
        return visits.group_V[v], computed_k(v, k, visits), n

    def result_block(n, v, k, *visits):
        return Visits(*visits).tile_V[v], n

    matrix = pl.BlockSpec((None, tiles.k, tiles.n), matrix_block)
    sums = [pltpu.VMEM((tiles.m, tiles.n), jnp.float32)] * 2
    call = pl.pallas_call(
        functools.partial(_kernel, D=D, activation=activation, num_results=num_results),
        (like(rows_RD, (R, F), x_ND.dtype),) * num_results,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits),
            grid=(pl.cdiv(F, tiles.n), len(visits.group_V), tiles_k),
            in_specs=[pl.BlockSpec((tiles.m, tiles.k), rows_block), matrix, matrix],
            out_specs=(pl.BlockSpec((tiles.m, tiles.n), result_block),) * num_results,
            scratch_shapes=sums if tiles_k > 1 else [],
        ),
        compiler_params=pltpu.CompilerParams(
            ("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=SWIGLU.vmem(problem, tiles)
        ),
        name="grouped_swiglu",
    )
    return call(*visits, rows_RD, gate_GDF, up_GDF)


def _kernel(*refs, D: int, activation: str, num_results: int):
    """One visit's part of a tile of the results, for one block of the contracted width."""
    num_visits = len(Visits._fields)
    visits, (rows, gate, up, *rest) = Visits(*refs[:num_visits]), refs[num_visits:]
    results, sums = rest[:num_results], rest[num_results:]
    v, k = pl.program_id(1), pl.program_id(2)
    tile_k, last_k = rows.shape[1], pl.num_programs(2) - 1
    start, end = visits.start_V[v], visits.end_V[v]
    first_of_tile = (v == 0) | (visits.tile_V[jnp.maximum(v - 1, 0)] != visits.tile_V[v])

    @pl.when(first_of_tile & (k == 0))
    def _():
        for result in results:
            result[...] = jnp.zeros_like(result)

    def pair():
        left, rights = rows[...], [gate[...], up[...]]
        if D % tile_k:  # what is behind the arrays may be NaN
            left = products.keep(left, 1, 0, D - k * tile_k)
            rights = [products.keep(right, 0, 0, D - k * tile_k) for right in rights]
        return [products.dot(left, right, (1, 0)) for right in rights]

    def write(gate_mn, up_mn):
        row = lax.broadcasted_iota(jnp.int32, gate_mn.shape, 0)
        inside = (row >= start) & (row < end)
        found = gated(gate_mn, up_mn, activation, results[0].dtype), gate_mn, up_mn
        for result, new_mn in zip(results, found, strict=False):
            result[...] = jnp.where(inside, new_mn.astype(result.dtype), result[...])

    @pl.when(start < end)
    def _():
        if not sums:
            write(*pair())
            return

        @pl.when(k == 0)
        def _():
            for sum_mn in sums:
                sum_mn[...] = jnp.zeros_like(sum_mn)

        for sum_mn, product_mn in zip(sums, pair(), strict=True):
            sum_mn[...] += product_mn

        @pl.when(k == last_k)
        def _():
            write(*(sum_mn[...] for sum_mn in sums))
