"""The union of experts on TPU, in Pallas (Mosaic).

The grid goes over the experts of the union, whose list is prefetched as scalars, and over blocks of their
width; it is as long as the union. A step's blocks of up, gate and down arrive while the step before is at
work, and the sum over all of them stays in VMEM, so that each weight of the union is read once and nothing
else is worth counting.

Floor: 2 or 3 D F numbers per expert of the union; 4 or 6 N D F FLOPs on them.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.union_experts.reference import union_of, weighted
from pallas_kernels.varying import like

PLATFORM = "tpu"
DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))
LANES, SUBLANES = 128, 16
MOST_TOKENS = 256
BLOCKS_VMEM = 16 * 2**20  # of the weights that are in use and on their way
MOST_VMEM = 48 * 2**20


def block_width(D: int, F: int, matrices: int, itemsize: int) -> int:
    """How much of an expert's width a step takes: all of it, or a divisor that is whole lanes."""
    fits = lambda width: 2 * matrices * D * width * itemsize <= BLOCKS_VMEM
    widths = [F] + [F // parts for parts in range(2, F // LANES + 1) if F % (parts * LANES) == 0]
    return next(filter(fits, widths), widths[-1])


def vmem(N: int, D: int, E: int, width: int, matrices: int, itemsize: int) -> int:
    """Bytes of VMEM granted to the kernel."""
    lanes = -(-width // LANES) * LANES
    blocks = 2 * matrices * D * lanes * itemsize
    return blocks * (3 if itemsize == 4 else 1) + N * (6 * D + 8 * lanes + 4 * max(E, LANES)) * 4 + 4 * 2**20


def refusal(function, x_ND, weight_NE, up_EDF, down_EFD, *gates, **static) -> str | None:
    """Why these operands cannot be served, or None."""
    for x in (x_ND, up_EDF, down_EFD, *gates):
        if jnp.dtype(x.dtype) not in DTYPES:
            return f"it multiplies {' and '.join(dtype.name for dtype in DTYPES)}, not {x.dtype.name}"
    (N, D), (E, _, F) = x_ND.shape, up_EDF.shape
    if N > MOST_TOKENS:
        return f"{N} tokens are more than {MOST_TOKENS}"
    matrices, itemsize = 2 + len(gates), up_EDF.dtype.itemsize
    if vmem(N, D, E, block_width(D, F, matrices, itemsize), matrices, itemsize) > MOST_VMEM:
        return f"blocks of experts of {D} x {F} do not fit in VMEM"
    return None


def apply(x_ND, weight_NE, up_EDF, down_EFD, *gates, activation) -> jax.Array:
    """See `reference.apply`."""
    (N, D), (E, _, F) = x_ND.shape, up_EDF.shape
    rows = -(-N // SUBLANES) * SUBLANES
    padded = lambda x: jnp.pad(x, ((0, rows - N), (0, 0)))
    expert_U, count = union_of(weight_NE)
    matrices, itemsize = 2 + len(gates), up_EDF.dtype.itemsize
    width = block_width(D, F, matrices, itemsize)
    whole = lambda *shape: pl.BlockSpec(shape, lambda u, f, expert_U: (0, 0))
    column_block = pl.BlockSpec((None, D, width), lambda u, f, expert_U: (expert_U[u], 0, f))
    row_block = pl.BlockSpec((None, width, D), lambda u, f, expert_U: (expert_U[u], f, 0))
    call = pl.pallas_call(
        functools.partial(_kernel, activation=activation),
        like(x_ND, (rows, D), x_ND.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            # of an empty union one expert is read, with a weight of zero for all
            grid=(jnp.maximum(count, 1), F // width),
            in_specs=[whole(rows, D), whole(rows, E), row_block] + [column_block] * (1 + len(gates)),
            out_specs=whole(rows, D),
            scratch_shapes=[pltpu.VMEM((rows, D), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(
            ("arbitrary", "arbitrary"), vmem_limit_bytes=vmem(rows, D, E, width, matrices, itemsize)
        ),
        name="union_experts",
    )
    weight_NE = padded(weight_NE.astype(jnp.float32))
    return call(expert_U, padded(x_ND), weight_NE, down_EFD, up_EDF, *gates)[:N]


def _kernel(expert_U, x, weight, down, *refs, activation: str):
    """Add a block of one expert's width to the sum."""
    *wide, out, sum_ND = refs
    u, f = pl.program_id(0), pl.program_id(1)
    exact = lax.Precision.HIGHEST if down.dtype == jnp.float32 else None
    dot = functools.partial(jnp.dot, precision=exact, preferred_element_type=jnp.float32)

    @pl.when((u == 0) & (f == 0))
    def _():
        sum_ND[...] = jnp.zeros_like(sum_ND)

    column = lax.broadcasted_iota(jnp.int32, weight.shape, 1)
    weight_N1 = jnp.sum(jnp.where(column == expert_U[u], weight[...], 0), axis=1, keepdims=True)
    x_ND = x[...].astype(down.dtype)
    h_NF = weighted(*(dot(x_ND, matrix[...]) for matrix in wide), weight=weight_N1, activation=activation)
    part_ND = dot(h_NF.astype(down.dtype), down[...])
    sum_ND[...] += jnp.where(weight_N1 != 0, part_ND, 0)

    @pl.when((u == pl.num_programs(0) - 1) & (f == pl.num_programs(1) - 1))
    def _():
        out[...] = sum_ND[...].astype(out.dtype)
