"""Grouped products on Hopper GPUs, in Pallas (Mosaic GPU).

One block per core lives as long as the kernel and works off items, each a tile of the result of 128 rows by
up to 256 columns. Of its three warp groups one fetches and two multiply, 64 rows each:

    fetch      wait until a slot is free; copy 64 deep parts of both operands there      (bulk copies)
    multiply   wait until they are there; sum += left @ right; free the slot before      (wgmma)
               after the last step: round the sum, send it out                           (bulk copies)

The slots are a ring through all items: while a tile is sent out, the parts of the next one arrive. Matrices
are read as they lie, transposed or not.

No row is masked where most of the work is. `matmul` cuts every group into tiles from its own first row on,
and a half tile that would reach past the group begins earlier: some rows are computed twice, by the same
sums, and written twice. Only groups of fewer than 64 rows are sent out row by row. `outer` sums over a
group's rows in steps of 64; the last step begins earlier too, and the rows that were summed before are
zeroed in one operand, by each warp group in its own part. Only groups of fewer than 64 rows need both zeroed.

Items are dealt out in turns, longest first, each turn in the other direction. Of `matmul` all items are as
long; of `outer` an item is as long as its group. Its largest group is not split: under a Zipf distribution
the busiest core then has 3 to 19% more steps than with equal groups, 3 to 5% of it for steps that are not
full (Mixtral 3, DeepSeek-V3 7, OLMoE 13, Qwen3-30B-A3B 19).

What an H100 (bfloat16, 989 TFLOP/s on paper, 132 cores) can do with an item of 256 columns: a step is 4.2
MFLOP, 0.56 us, and draws 48 KiB from the L2 cache, 0.93 us at the 7 TB/s that `gpu_tiles` reckons with if
nothing that neighbours ask for is shared; sharing decides between 600 and 989 TFLOP/s. The end of an item
is 0.3 to 0.8 us. A forward item is K / 64 steps: Mixtral 64, 36 us, Qwen3 32, DeepSeek-V3 112.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gpu_chips import this_chip
from pallas_kernels.grouped_matmul import gpu_schedule, gpu_tiles
from pallas_kernels.grouped_matmul.gpu_schedule import RowTiles
from pallas_kernels.grouped_matmul.gpu_tiles import PART, Tiles
from pallas_kernels.varying import like

PLATFORM = "cuda"
DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
RESULTS = (*DTYPES, jnp.dtype(jnp.float32))
ROWS_UNIT = 8
PADDING = 16  # bytes behind each row, which spread rows over the banks of shared memory
MULTIPLYING = 2  # warp groups; one more fetches
REGISTERS_TO_MULTIPLY, REGISTERS_TO_FETCH = 232, 40


def matmul(lhs_MK, rhs, start_G, end_G, transpose_rhs: bool, dtype) -> jax.Array:
    """See `reference.matmul`."""
    (M, K), N = lhs_MK.shape, rhs.shape[1 if transpose_rhs else 2]
    tiles = gpu_tiles.choose(N, pl.cdiv(K, PART), jnp.dtype(dtype).itemsize, this_chip())
    rows = gpu_schedule.row_tiles(start_G, end_G, M, tiles.m)
    columns = pl.cdiv(N, tiles.n)

    def grouped_matmul(*refs):
        rows, (lhs, rhs, out), kept = RowTiles(*refs[:5]), refs[5:8], _Kept(*refs[8:])

        def locate(item):
            tile, column = gpu_schedule.in_bands(item, rows.count[0], columns)
            group = rows.group_T[tile]
            steps = jnp.where(group < 0, 0, pl.cdiv(K, PART))
            return _Rows(
                rows.first_T[tile], rows.start_T[tile], rows.end_T[tile], group, column * tiles.n
            ), steps

        def row_of(at, half):
            """A half that would reach past the segment begins earlier, with rows that others have too."""
            first = at.first + half * PART
            return jnp.minimum(first, jnp.maximum(at.end - PART, at.start)), first < at.end

        def fetch(at, step, slot):
            along = pl.ds(step * PART, PART)
            loaded = kept.loaded.at[slot]
            for half in range(MULTIPLYING):
                row, _ = row_of(at, half)
                plgpu.copy_gmem_to_smem(lhs.at[pl.ds(row, PART), along], kept.left.at[slot, half], loaded)
            across = pl.ds(at.column, tiles.n)
            matrix = rhs.at[at.group]
            part = matrix.at[across, along] if transpose_rhs else matrix.at[along, across]
            plgpu.copy_gmem_to_smem(part, kept.right.at[slot], loaded)

        def multiply(at, step, slot, half, sums):
            right = kept.right.at[slot]
            plgpu.wgmma(
                sums, kept.left.at[slot, half], plgpu.transpose_ref(right, (1, 0)) if transpose_rhs else right
            )

        def store(at, half, product):
            row, any_rows = row_of(at, half)
            many = at.end - row >= PART

            @pl.when(any_rows & many)
            def _():
                _store(kept.out[0].at[half], product, out.at[pl.ds(row, PART)], at.column, N)

            @pl.when(any_rows & ~many)
            def _():
                _store_few(kept.out[1].at[half], product, out, (row, at.end - row), at.column, N)

        _work(kept, tiles, rows.count[0] * columns, _Ways(locate, fetch, multiply, store))

    most = gpu_schedule.most_tiles(M, len(start_G), tiles.m) * columns
    right = (tiles.n, PART) if transpose_rhs else (PART, tiles.n)
    run = _kernel(grouped_matmul, like(lhs_MK, (M, N), dtype), tiles, right, lhs_MK.dtype, most)
    return run(*rows, lhs_MK, rhs)


class _Rows(NamedTuple):
    """Where a work item of `matmul` is."""

    first: jax.Array
    start: jax.Array
    end: jax.Array
    group: jax.Array
    column: jax.Array


def outer(lhs_MK, rhs_MN, start_G, end_G, dtype) -> jax.Array:
    """See `reference.outer`."""
    (M, K), N, G = lhs_MK.shape, rhs_MN.shape[1], len(start_G)
    tiles = gpu_tiles.choose(N, -(-M // G // PART), jnp.dtype(dtype).itemsize, this_chip())
    tiles_k, columns = pl.cdiv(K, tiles.m), pl.cdiv(N, tiles.n)

    def grouped_outer(group_G, start_G, end_G, lhs, rhs, out, *scratch):
        kept = _Kept(*scratch)

        def locate(item):
            group = group_G[lax.div(item, tiles_k * columns)]
            tile, column = gpu_schedule.in_bands(lax.rem(item, tiles_k * columns), tiles_k, columns)
            start, end = start_G[group], end_G[group]
            at = _Block(start, end, group, tile * tiles.m, column * tiles.n)
            return at, lax.div(end - start + PART - 1, PART)

        def row_of(at, step):
            """The last step begins earlier, with rows that were there already, if the group allows it."""
            first = at.start + step * PART
            return first, jnp.minimum(first, jnp.maximum(at.end - PART, at.start))

        def fetch(at, step, slot):
            rows = pl.ds(row_of(at, step)[1], PART)
            loaded = kept.loaded.at[slot]
            for half in range(MULTIPLYING):
                part = lhs.at[rows, pl.ds(at.k + half * PART, PART)]
                plgpu.copy_gmem_to_smem(part, kept.left.at[slot, half], loaded)
            plgpu.copy_gmem_to_smem(rhs.at[rows, pl.ds(at.column, tiles.n)], kept.right.at[slot], loaded)

        def multiply(at, step, slot, half, sums):
            first, row = row_of(at, step)
            few = at.end - row < PART

            @pl.when((row < first) | few)
            def _():
                _keep_rows(kept.left.at[slot, half], first - row, at.end - row)

                for other, part in enumerate(_halves(tiles.n)):

                    @pl.when(few & (half == other))
                    def _(part=part):
                        _keep_rows(kept.right.at[slot, :, part], 0, at.end - row)

                plgpu.commit_smem()

                @pl.when(few)
                def _():
                    plgpu.barrier_arrive(kept.cleared)
                    plgpu.barrier_wait(kept.cleared)

            plgpu.wgmma(sums, plgpu.transpose_ref(kept.left.at[slot, half], (1, 0)), kept.right.at[slot])

        def store(at, half, product):
            row = at.k + half * PART

            @pl.when(row < K)
            def _():
                _store(kept.out[0].at[half], product, out.at[at.group, pl.ds(row, PART)], at.column, N)

        _work(kept, tiles, G * tiles_k * columns, _Ways(locate, fetch, multiply, store))

    most, right = G * tiles_k * columns, (PART, tiles.n)
    run = _kernel(grouped_outer, like(lhs_MK, (G, K, N), dtype), tiles, right, lhs_MK.dtype, most)
    return run(gpu_schedule.longest_first(start_G, end_G), start_G, end_G, lhs_MK, rhs_MN)


class _Block(NamedTuple):
    """Where a work item of `outer` is."""

    start: jax.Array
    end: jax.Array
    group: jax.Array
    k: jax.Array
    column: jax.Array


def refusal(function: str, lhs_MK, rhs, *others, dtype, **static) -> str | None:
    """Why these operands cannot be served, or None."""
    if function not in ("matmul", "outer"):
        return "it has no products with scaled matrices of 8-bit integers"
    if not this_chip().hopper:
        return "its products of warp groups need a Hopper GPU (H100, H200)"
    if lhs_MK.dtype not in DTYPES:
        return f"it multiplies {' and '.join(d.name for d in DTYPES)}, not {lhs_MK.dtype.name}"
    if jnp.dtype(dtype) not in RESULTS:
        return f"it gives {', '.join(d.name for d in RESULTS)}, not {jnp.dtype(dtype).name}"
    if lhs_MK.shape[0] % ROWS_UNIT:
        return f"bulk copies need rows that are a multiple of {ROWS_UNIT}, not {lhs_MK.shape[0]}"
    for width in (lhs_MK.shape[1], rhs.shape[-1], rhs.shape[-2] if function == "matmul" else PART):
        if width % PART:
            return f"bulk copies need widths that are multiples of {PART}, not {width}"
    return None


class _Kept(NamedTuple):
    """What a block keeps in shared memory."""

    left: jax.Ref  # [stage, half] of a tile of the left operand
    right: jax.Ref  # [stage]
    out: list[jax.Ref]  # parts of the result on their way out: [half, place], and [half] for few rows
    loaded: jax.Ref
    released: jax.Ref
    cleared: jax.Ref


def _kernel(body: Callable, result, tiles: Tiles, right, dtype, most_items: int):
    out = result.dtype
    scratch = _Kept(
        left=_swizzled((tiles.stages, MULTIPLYING, PART, PART), dtype),
        right=_swizzled((tiles.stages, *right), dtype),
        out=plgpu.RefUnion(
            _swizzled((MULTIPLYING, tiles.places, PART, gpu_tiles.chunk(out.itemsize)), out),
            plgpu.SMEM((MULTIPLYING, PART, (128 + PADDING) // out.itemsize), out),
        ),
        loaded=plgpu.Barrier(num_arrivals=MULTIPLYING + 1, num_barriers=tiles.stages),
        released=plgpu.Barrier(num_arrivals=MULTIPLYING, num_barriers=tiles.stages),
        cleared=plgpu.Barrier(num_arrivals=MULTIPLYING),
    )
    return plgpu.kernel(
        body,
        out_type=result,
        scratch_types=scratch,
        grid=(min(this_chip().cores, most_items),),
        grid_names=("block",),
        num_threads=MULTIPLYING + 1,
        thread_name="warps",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )


def _swizzled(shape: tuple[int, ...], dtype):
    """Shared memory in the order that products of warp groups and bulk copies read without conflicts."""
    elements = 128 // jnp.dtype(dtype).itemsize
    return plgpu.SMEM(
        shape, dtype, transforms=(plgpu.TilingTransform((8, elements)), plgpu.SwizzleTransform(128))
    )


class _Ways(NamedTuple):
    """What a kernel does with a work item."""

    locate: Callable  # (item) -> where it is, and in how many steps it is summed
    fetch: Callable  # (at, step, slot): begin to copy what the step needs
    multiply: Callable  # (at, step, slot, half, sums): add the step's product
    store: Callable  # (at, half, product)


def _work(kept: _Kept, tiles: Tiles, num_items, ways: _Ways):
    """Let one warp group fetch, and two multiply, for every work item of this block."""
    block, blocks, stages = lax.axis_index("block"), lax.axis_size("block"), tiles.stages
    place_in = lambda turn: jnp.where(lax.rem(turn, 2) == 0, block, blocks - 1 - block)
    turns = lax.div(num_items, blocks)
    mine = turns + (place_in(turns) < num_items - turns * blocks).astype(jnp.int32)
    slot_of = lambda step: lax.rem(step, stages)

    def for_each_item(do):
        def body(i, done):
            at, steps = ways.locate(i * blocks + place_in(i))
            do(at, steps, done)
            return done + steps

        return lax.fori_loop(0, mine, body, jnp.int32(0))

    def fetching():
        plgpu.set_max_registers(REGISTERS_TO_FETCH, action="decrease")

        def item(at, steps, done):
            def body(step, _):
                slot = slot_of(done + step)

                @pl.when(done + step >= stages)
                def _():
                    plgpu.barrier_wait(kept.released.at[slot])

                ways.fetch(at, step, slot)

            lax.fori_loop(0, steps, body, None)

        done = for_each_item(item)
        last = lambda step, _: plgpu.barrier_wait(kept.released.at[slot_of(step)])
        lax.fori_loop(jnp.maximum(done - stages, 0), done, last, None)

    def multiplying(half):
        plgpu.set_max_registers(REGISTERS_TO_MULTIPLY, action="increase")

        def item(at, steps, done):
            def summed(sums):
                def body(step, _):
                    slot = slot_of(done + step)
                    plgpu.barrier_wait(kept.loaded.at[slot])
                    ways.multiply(at, step, slot, half, sums)
                    plgpu.wgmma_wait(1)

                    @pl.when(step > 0)
                    def _():
                        plgpu.barrier_arrive(kept.released.at[slot_of(done + step - 1)])

                lax.fori_loop(0, steps, body, None)
                return sums[...]

            product = pl.run_scoped(summed, plgpu.ACC((PART, tiles.n)))

            @pl.when(steps > 0)
            def _():
                plgpu.barrier_arrive(kept.released.at[slot_of(done + steps - 1)])

            ways.store(at, half, product)

        for_each_item(item)
        plgpu.wait_smem_to_gmem(0)

    warps = lax.axis_index("warps")
    lax.cond(warps == MULTIPLYING, fetching, lambda: multiplying(warps))


def _store(places, product, out, column, width: int):
    """Send 64 rows of a tile out, as much of it at a time as there is place for."""
    num_places, _, chunk = places.shape
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    for i in range(product.shape[1] // chunk):

        @pl.when(column + i * chunk < width)
        def _(i=i):
            if i >= num_places:
                plgpu.wait_smem_to_gmem(num_places - 1, wait_read_only=True)
            place = places.at[i % num_places]
            place[...] = product[:, i * chunk : (i + 1) * chunk].astype(place.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(place, out.at[:, pl.ds(column + i * chunk, chunk)])


def _store_few(place, product, out, span, column, width: int):
    """Send fewer rows of a tile out, one by one: `span` is the first one's place and how many they are."""
    row, rows = span
    chunk = gpu_tiles.chunk(place.dtype.itemsize)
    for i in range(product.shape[1] // chunk):

        @pl.when(column + i * chunk < width)
        def _(i=i):
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            place[:, :chunk] = product[:, i * chunk : (i + 1) * chunk].astype(place.dtype)
            plgpu.commit_smem()

            def send(r, _):
                across = pl.ds(column + i * chunk, chunk)
                plgpu.copy_smem_to_gmem(place.at[pl.ds(r, 1), :chunk], out.at[pl.ds(row + r, 1), across])

            lax.fori_loop(0, rows, send, None)


def _keep_rows(tile, start, end):
    """Zero all rows of a tile in shared memory but those in [start, end), also if they are NaN."""
    row = plgpu.layout_cast(lax.broadcasted_iota(jnp.int32, tile.shape, 0), plgpu.Layout.WGMMA)
    tile[...] = jnp.where((row >= start) & (row < end), tile[...], jnp.zeros(tile.shape, tile.dtype))


def _halves(n: int) -> list[slice]:
    return [slice(0, n // 2), slice(n // 2, n)]
