"""The permutations on TPU, in Pallas (Mosaic): rows come from the main memory one copy each.

The rows of a step are known before it starts, from indices that are prefetched as scalars, so that they come
while the rows of the step before are worked on; what a step needs lies in VMEM only. `combine` fetches the K
rows of some tokens and sums them there, `spread` fetches the gradients of some rows' tokens and takes the
product with the rows at the same time.

A copy of a single row needs rows of whole 32-bit words: of bfloat16, the left and the right half of a row
are packed into one row of words before. That is one more pass over what is gathered from: the N tokens of
`gather` and `spread`, the R rows of `combine`, which then moves three times what it reads for float32.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.varying import like

PLATFORM = "tpu"
LANES = 128
HEIGHTS = (512, 256, 128, 64, 32, 16)  # rows or tokens of a step
SLICE = 16  # rows that are computed together: a tile of bfloat16, and little code
BUDGET, LIMIT = 24 * 2**20, 40 * 2**20  # bytes of VMEM: what steps are cut to, what a kernel is granted
MOST_SCALARS = 196608  # of the 2**18 words of SMEM
CORES = 2  # most that share a kernel
AT_ONCE = 8  # copies that are started per turn of a loop


def refusal(function: str, *operands) -> str | None:
    """Why these operands cannot be served, or None."""
    rows = operands[0]
    if rows.dtype not in (jnp.bfloat16, jnp.float32):
        return f"it moves bfloat16 and float32, not {rows.dtype.name}"
    if rows.dtype == jnp.bfloat16 and rows.shape[1] % (2 * LANES):
        return f"halves of bfloat16 rows are not multiples of {LANES} wide, of {rows.shape[1]}"
    indices = operands[2] if function == "spread" else operands[1]
    if indices.size > MOST_SCALARS:
        return f"the places of {indices.size} rows do not fit in SMEM"
    cost = _bytes(function, rows, operands[1].shape[1] if function == "combine" else 1)
    if cost * _least(function) > BUDGET:
        return f"rows of {rows.shape[1]} are too wide for VMEM"
    return None


def gather(x_ND, source_R) -> jax.Array:
    """See `reference.gather`."""
    R, D = len(source_R), x_ND.shape[1]
    height = _height("gather", x_ND)
    tile = pl.BlockSpec((height, D), _tile_of(R, height))
    return _fetching(_gather_kernel, x_ND, source_R, height, R)([], [], like(x_ND, (R, D), x_ND.dtype), tile)


def combine(rows_RD, home_NK, gate_NK) -> jax.Array:
    """See `reference.combine`."""
    (N, K), D = home_NK.shape, rows_RD.shape[1]
    height = _height("combine", rows_RD, K)
    # of the tokens of a step, first all first slots
    home_NK = jnp.pad(home_NK, ((0, -N % height), (0, 0)))
    home_R = home_NK.reshape(-1, height, K).transpose(0, 2, 1).reshape(-1)
    at = _tile_of(N, height)
    call = _fetching(_combine_kernel, rows_RD, home_R, K * height, N * K)
    tile = pl.BlockSpec((height, D), at)
    return call([gate_NK], [pl.BlockSpec((height, K), at)], like(rows_RD, (N, D), rows_RD.dtype), tile)


def spread(y_ND, rows_RD, source_R, gate_R, home_NK) -> tuple[jax.Array, jax.Array]:
    """See `reference.spread`."""
    R, D = rows_RD.shape
    height = _height("spread", rows_RD)
    at = _tile_of(R, height)
    row_tile = pl.BlockSpec((height, D), at)
    # one number per row would be padded to 128 in memory; here they lie in lanes
    lanes = -(-R // height), height // LANES, LANES
    lane_tile = pl.BlockSpec((None, *lanes[1:]), lambda *step: (at(*step)[0], 0, 0))
    gate = jnp.pad(gate_R, (0, -R % height)).reshape(lanes)
    results = like(rows_RD, (R, D), rows_RD.dtype), like(rows_RD, lanes, jnp.float32)
    call = _fetching(_spread_kernel, y_ND, source_R, height, R)
    d_rows_RD, product = call([rows_RD, gate], [row_tile, lane_tile], results, (row_tile, lane_tile))
    return d_rows_RD, product.reshape(-1)[home_NK]


def _fetching(kernel, x_ND, index_R, count: int, total: int):
    """Run a kernel to which `count` rows of x come per step, `total` in all; they are its first operand.

    Returns:
      (operands, their blocks, results, their blocks) -> results.
    """
    words = _packed(x_ND)
    steps = pl.cdiv(total, count)
    index_R = jnp.pad(index_R, (0, steps * count - len(index_R)))
    cores = min(CORES, steps)

    def body(index, words, *blocks):
        *blocks, buffer, arrival = blocks
        kernel(_arrived(index, words, buffer, arrival, steps), *blocks)

    def call(operands, blocks, results, result_blocks):
        # one after the other under vmap: an array that is not cut into blocks cannot get one more dim
        run = jax.custom_batching.sequential_vmap(
            pl.pallas_call(
                body,
                results,
                grid_spec=pltpu.PrefetchScalarGridSpec(
                    num_scalar_prefetch=1,
                    grid=(cores, pl.cdiv(steps, cores)),
                    in_specs=[pl.BlockSpec(memory_space=pl.ANY), *blocks],
                    out_specs=result_blocks,
                    scratch_shapes=[
                        pltpu.VMEM((2, count, words.shape[1]), words.dtype),
                        pltpu.SemaphoreType.DMA((2,)),
                    ],
                ),
                compiler_params=pltpu.CompilerParams(("parallel", "arbitrary"), vmem_limit_bytes=LIMIT),
                name=kernel.__name__.strip("_"),
            )
        )
        return run(index_R, words, *operands)

    return call


def _tile_of(total: int, height: int):
    """The block index of a step on a core; the last core repeats its last step if steps do not split."""
    steps = pl.cdiv(total, height)
    each = pl.cdiv(steps, min(CORES, steps))
    return lambda core, step, index: (jnp.minimum(core * each + step, steps - 1), 0)


def _arrived(index, words, buffer, arrival, steps: int):
    """The rows of this step, when they are there; those of the next one are under way then."""
    core, step, each = pl.program_id(0), pl.program_id(1), pl.num_programs(1)
    count, half = buffer.shape[1], step % 2

    def start(step, half):
        first = jnp.minimum(core * each + step, steps - 1) * count

        def some(turn, _):
            for j in range(AT_ONCE):
                at = turn * AT_ONCE + j
                row, place = words.at[pl.ds(index[first + at], 1)], buffer.at[half, pl.ds(at, 1)]
                pltpu.make_async_copy(row, place, arrival.at[half]).start()

        lax.fori_loop(0, count // AT_ONCE, some, None)

    pl.when(step == 0)(lambda: start(step, half))
    pl.when(step + 1 < each)(lambda: start(step + 1, 1 - half))
    # waits for as many bytes as all of them have
    pltpu.make_async_copy(buffer.at[half], buffer.at[half], arrival.at[half]).wait()
    return buffer.at[half]


def _gather_kernel(rows, out):
    def some(i, _):
        here = _slice(i, len(out))
        out[here] = _unpacked(rows[here]).astype(out.dtype)

    lax.fori_loop(0, _slices(len(out)), some, None)


def _combine_kernel(rows, gate, out):
    height, width = out.shape

    def some(i, _):
        here = _slice(i, height)
        sum_nd = jnp.zeros((here.size, width), jnp.float32)
        for k in range(gate.shape[1]):
            gate_n1 = gate[here, k : k + 1]
            row_nd = _unpacked(rows[pl.ds(k * height + here.start, here.size)])
            sum_nd += jnp.where(gate_n1 == 0, 0, gate_n1 * row_nd)
        out[here] = sum_nd.astype(out.dtype)

    lax.fori_loop(0, _slices(height), some, None)


def _spread_kernel(fetched, rows, gate, d_rows, product):
    for group in range(gate.shape[0]):

        def some(i, product_1r, group=group):
            within = _slice(i, LANES)
            here = pl.ds(group * LANES + within.start, within.size)
            # numbers of these rows between lanes and a column
            shape = within.size, LANES
            row, lane = (lax.broadcasted_iota(jnp.int32, shape, dim) for dim in (0, 1))
            own = row + within.start == lane
            y_rd = _unpacked(fetched[here])
            gate_r1 = jnp.sum(jnp.where(own, gate[group : group + 1], 0), axis=1, keepdims=True)
            d_rows[here] = jnp.where(gate_r1 == 0, 0, gate_r1 * y_rd).astype(d_rows.dtype)
            product_r1 = jnp.sum(rows[here].astype(jnp.float32) * y_rd, axis=1, keepdims=True)
            return product_1r + jnp.sum(jnp.where(own, product_r1, 0), axis=0, keepdims=True)

        nothing_1r = jnp.zeros((1, LANES), jnp.float32)
        product[group : group + 1] = lax.fori_loop(0, _slices(LANES), some, nothing_1r)


def _slices(height: int) -> int:
    return height // min(SLICE, height)


def _slice(i, height: int):
    """The rows that are computed together, the i-th of `_slices(height)`."""
    size = min(SLICE, height)
    return pl.ds(pl.multiple_of(i * size, size), size)


def _packed(x_ND):
    """Rows of 32-bit words: float32, or the left half of a bfloat16 row below the right one."""
    if x_ND.dtype == jnp.float32:
        return x_ND
    wide = (half.astype(jnp.float32) for half in jnp.split(x_ND, 2, axis=1))
    left, right = (lax.bitcast_convert_type(half, jnp.uint32) for half in wide)
    return left >> 16 | right


def _unpacked(words):
    """The rows in float32, whose upper half a bfloat16 is."""
    if words.dtype == jnp.float32:
        return words
    halves = words << 16, words & jnp.uint32(0xFFFF0000)
    return jnp.concatenate([lax.bitcast_convert_type(half, jnp.float32) for half in halves], axis=1)


def _height(function: str, rows, num_slots: int = 1) -> int:
    """Rows or tokens of a step."""
    cost = _bytes(function, rows, num_slots)
    return next(h for h in HEIGHTS if h * cost <= BUDGET or h == _least(function))


def _least(function: str) -> int:
    return LANES if function == "spread" else HEIGHTS[-1]


def _bytes(function: str, rows, num_slots: int) -> int:
    """Of VMEM, for each row or token of a step: two of all that moves, and what is computed in float32."""
    width = -(-rows.shape[1] // LANES) * LANES
    moved = {"gather": 2, "combine": num_slots + 1, "spread": 3}[function]
    return 2 * moved * width * rows.dtype.itemsize + 3 * width * 4
