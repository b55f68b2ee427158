"""The backward kernels of segment attention on Hopper GPUs: one for queries, one for keys and values.

Both compute the scores again. One kernel for all three gradients would save two of the seven products of a
pair of blocks, and would have to add up the gradients of queries in the main memory in the order in which
blocks of threads happen to run; two kernels give the same bits every time.

    queries  128 queries of a head walk over their key blocks:     d_q += d_score @ k
    keys     128 keys of a group walk over the query blocks of all d_v += share.T @ d_o
             heads of the group, whose gradients so add up:        d_k += d_score.T @ q

    share = 2 ** (unit * q @ k.T - lse),  d_score = share * (d_o @ v.T - delta)

The floor is arithmetic: per visible pair of positions and head 4 A + 2 C operations in the queries' kernel
and 4 A + 4 C in that of keys, where a single kernel would need 6 A + 4 C.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.segment_attention import gpu_parts as parts
from pallas_kernels.segment_attention.blocks import Walk, key_walks, query_walks
from pallas_kernels.segment_attention.gpu_parts import FETCHER, ROWS, TILE, Tiles, ring
from pallas_kernels.varying import like


def queries(operands, *, window: int | None, scale: float, how: Tiles):
    """From (q_BTHA, k_BTGA, v_BTGC, Segments, score_start_BHP, d_share_start_BHP, d_o_BTHC): d_q_BTHA.

    Sums of scores begin at -lse / scale, those of d_share at -delta; both are 0 for padding.
    """
    q_BTHA, k_BTGA, v_BTGC, segments, *others = operands
    (B, _, H, A), (G, C), P = q_BTHA.shape, v_BTGC.shape[2:], segments.key_BP.shape[1]
    dtype, num_tiles, (keys, stages) = q_BTHA.dtype, P // TILE, how
    unit = scale * parts.LOG2_E

    def kernel(*refs):
        q, k, v, query_segments, key_segments, score_start, d_share_start, d_o, walks, d_q, *scratch = refs
        q_tiles, d_o_tiles, k_tiles, v_tiles, mine_there, k_there, v_there, k_done, v_done = scratch
        batch, head, me = (lax.axis_index(name) for name in ("batch", "head", "warpgroup"))
        tile = num_tiles - 1 - lax.axis_index("tile")  # the longest walks first
        walk = Walk(*(walks[batch, tile, i] for i in range(len(Walk._fields))))
        steps = walk.end - walk.first
        block_of = lambda step: walk.end - 1 - step
        whole_from, whole_to = (jnp.clip(walk.end - block, 1, steps) for block in (walk.full_end, walk.full))

        @pl.when(me == FETCHER)
        def fetch():
            plgpu.set_max_registers(parts.FETCH_REGISTERS, action="decrease")
            group = lax.div(head, jnp.int32(H // G))

            @pl.loop(0, steps)
            def _(step):
                slot, at = ring(step, stages), pl.ds(block_of(step) * keys, keys)
                parts.wait_for_room(v_done, step, stages)
                plgpu.copy_gmem_to_smem(v.at[batch, at, group], v_tiles.at[slot], v_there.at[slot])
                parts.wait_for_room(k_done, step, stages)
                plgpu.copy_gmem_to_smem(k.at[batch, at, group], k_tiles.at[slot], k_there.at[slot])

        @pl.when(me != FETCHER)
        def compute():
            plgpu.set_max_registers(parts.COMPUTE_REGISTERS, action="increase")
            first_row = tile * TILE + me * ROWS
            rows = pl.ds(first_row, ROWS)
            q_tile, d_o_tile = q_tiles.at[me], d_o_tiles.at[me]
            plgpu.copy_gmem_to_smem(q.at[batch, rows, head], q_tile, mine_there.at[me])
            plgpu.copy_gmem_to_smem(d_o.at[batch, rows, head], d_o_tile, mine_there.at[me])
            segment_R = parts.load_rows(query_segments.at[batch, rows])
            starts = [parts.load_rows(x.at[batch, head, rows]) for x in (score_start, d_share_start)]

            def hide(score_RK, block):
                row_R = parts.rows_from(first_row)
                low_R = None if window is None else row_R - (window - 1)
                return parts.masked(score_RK, segment_R, key_segments.at[batch], block * keys, low_R, row_R)

            def scores(step, score_sum, d_share_sum):
                """Begin both products of a step."""
                slot = ring(step, stages)
                plgpu.wgmma(score_sum, q_tile, parts.transposed(k_tiles.at[slot]))
                plgpu.wgmma(d_share_sum, d_o_tile, parts.transposed(v_tiles.at[slot]))

            def d_scores(step, score_sum, d_share_sum, whole: bool):
                """What they lead to."""
                score_RK = lax.optimization_barrier(plgpu.wgmma_accumulator_load(score_sum, wait_n=1))
                score_RK = score_RK if whole else hide(score_RK, block_of(step))
                share_RK = jnp.exp2(score_RK * unit)
                d_share_RK = lax.optimization_barrier(plgpu.wgmma_accumulator_load(d_share_sum, wait_n=0))
                plgpu.barrier_arrive(v_done.at[ring(step, stages)])
                d_score_RK = share_RK * d_share_RK
                return (d_score_RK if whole else jnp.where(share_RK == 0, 0.0, d_score_RK)).astype(dtype)

            def there(step):
                plgpu.barrier_wait(k_there.at[ring(step, stages)])
                plgpu.barrier_wait(v_there.at[ring(step, stages)])

            def started():
                return [plgpu.ACC.init(parts.spread_rows(x_R, (ROWS, keys))) for x_R in starts]

            def first_step(refs):
                score_sum, d_share_sum, d_score_ref = refs
                scores(0, score_sum, d_share_sum)
                d_score_ref[...] = d_scores(0, score_sum, d_share_sum, whole=False)

            plgpu.barrier_wait(mine_there.at[me])
            there(0)
            nothing_RK = parts.full((ROWS, keys), 0).astype(dtype)
            _, _, d_score_RK = pl.run_state(first_step)((*started(), nothing_RK))

            def walk_on(step, carry, whole: bool):
                d_q_RA, d_score_RK = carry
                slot_before = ring(step - 1, stages)
                there(step)

                def products(refs):
                    d_q_sum, score_sum, d_share_sum, d_score_ref = refs
                    plgpu.wgmma(d_q_sum, d_score_RK, k_tiles.at[slot_before])
                    scores(step, score_sum, d_share_sum)
                    d_score_ref[...] = d_scores(step, score_sum, d_share_sum, whole)

                sums = plgpu.ACC.init(d_q_RA), *started()
                d_q_RA, _, _, d_score_RK = pl.run_state(products)((*sums, d_score_RK))
                plgpu.barrier_arrive(k_done.at[slot_before])
                return d_q_RA, d_score_RK

            carry = (parts.full((ROWS, A), 0), d_score_RK)
            for begin, end, whole in (
                (1, whole_from, False),
                (whole_from, whole_to, True),
                (whole_to, steps, False),
            ):
                carry = lax.fori_loop(begin, end, functools.partial(walk_on, whole=whole), carry)
            d_q_RA, d_score_RK = carry
            last_product = lambda total: plgpu.wgmma(total, d_score_RK, k_tiles.at[ring(steps - 1, stages)])
            d_q_RA = pl.run_state(last_product)(plgpu.ACC.init(d_q_RA))

            q_tile[...] = (d_q_RA * scale).astype(dtype)  # the queries have been read
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_tile, d_q.at[batch, rows, head])
            plgpu.wait_smem_to_gmem(0)

    tiles, barriers = functools.partial(parts.tiles_in_smem, dtype=dtype), parts.barriers
    call = plgpu.kernel(
        kernel,
        out_type=like(q_BTHA, q_BTHA.shape, dtype),
        scratch_types=[
            *(tiles(2, ROWS, A), tiles(2, ROWS, C), tiles(stages, keys, A), tiles(stages, keys, C)),
            *(barriers(2, 2), barriers(stages), barriers(stages), barriers(stages, 2), barriers(stages, 2)),
        ],
        grid=(B, num_tiles, H),
        grid_names=("batch", "tile", "head"),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        kernel_name="segment_attention_queries",
    )
    walk_BI4 = query_walks(segments.key_BP, TILE, keys, window)
    return call(q_BTHA, k_BTGA, v_BTGC, *segments, *others, walk_BI4)


def keys(operands, *, window: int | None, scale: float, how: Tiles):
    """From the same operands as `queries`: (d_k_BTGA, d_v_BTGC)."""
    q_BTHA, k_BTGA, v_BTGC, segments, *others = operands
    (B, _, H, A), (G, C), P = q_BTHA.shape, v_BTGC.shape[2:], segments.key_BP.shape[1]
    dtype, num_tiles, heads, (queries, stages) = q_BTHA.dtype, P // TILE, H // G, how
    unit = scale * parts.LOG2_E

    def kernel(
        q, k, v, query_segments, key_segments, score_start, d_share_start, d_o, walks, d_k, d_v, *scratch
    ):
        (
            k_tiles,
            v_tiles,
            q_tiles,
            d_o_tiles,
            score_starts,
            d_share_starts,
            mine_there,
            q_there,
            d_o_there,
            done,
        ) = scratch
        batch, tile, group, me = (lax.axis_index(name) for name in ("batch", "tile", "group", "warpgroup"))
        walk = Walk(*(walks[batch, tile, i] for i in range(len(Walk._fields))))
        steps = walk.end - walk.first  # of each head
        whole_from, whole_to = (
            jnp.clip(block - walk.first, 0, steps) for block in (walk.full, walk.full_end)
        )

        @pl.when(me == FETCHER)
        def fetch():
            plgpu.set_max_registers(parts.FETCH_REGISTERS, action="decrease")

            @pl.loop(0, heads * steps)
            def _(step):
                slot, head = ring(step, stages), group * heads + lax.div(step, steps)
                at = pl.ds((walk.first + lax.rem(step, steps)) * queries, queries)
                parts.wait_for_room(done, step, stages)
                for source, tiles, numbers, number_rows, there in (
                    (q, q_tiles, score_start, score_starts, q_there),
                    (d_o, d_o_tiles, d_share_start, d_share_starts, d_o_there),
                ):
                    plgpu.copy_gmem_to_smem(numbers.at[batch, head, at], number_rows.at[slot], there.at[slot])
                    plgpu.copy_gmem_to_smem(source.at[batch, at, head], tiles.at[slot], there.at[slot])

        @pl.when(me != FETCHER)
        def compute():
            plgpu.set_max_registers(parts.COMPUTE_REGISTERS, action="increase")
            first_row = tile * TILE + me * ROWS
            mine = (batch, pl.ds(first_row, ROWS), group)
            k_tile, v_tile = k_tiles.at[me], v_tiles.at[me]
            plgpu.copy_gmem_to_smem(k.at[mine], k_tile, mine_there.at[me])
            plgpu.copy_gmem_to_smem(v.at[mine], v_tile, mine_there.at[me])
            plgpu.barrier_wait(mine_there.at[me])

            def hide(score_RQ, block):
                row_R = parts.rows_from(first_row)
                segment_R = parts.load_rows(key_segments.at[batch, pl.ds(first_row, ROWS)])
                high_R = None if window is None else row_R + (window - 1)
                return parts.masked(
                    score_RQ, segment_R, query_segments.at[batch], block * queries, row_R, high_R
                )

            def walk_on(step, carry, first_step, whole: bool):
                slot, block = ring(first_step + step, stages), walk.first + step
                q_tile, d_o_tile = q_tiles.at[slot], d_o_tiles.at[slot]
                plgpu.barrier_wait(q_there.at[slot])
                plgpu.barrier_wait(d_o_there.at[slot])

                def products(refs):
                    d_k_sum, d_v_sum, score_sum, d_share_sum = refs
                    plgpu.wgmma(score_sum, k_tile, parts.transposed(q_tile))
                    plgpu.wgmma(d_share_sum, v_tile, parts.transposed(d_o_tile))
                    score_RQ = lax.optimization_barrier(plgpu.wgmma_accumulator_load(score_sum, wait_n=1))
                    score_RQ = score_RQ if whole else hide(score_RQ, block)
                    share_RQ = jnp.exp2(score_RQ * unit)
                    plgpu.wgmma(d_v_sum, share_RQ.astype(dtype), d_o_tile)
                    d_share_RQ = lax.optimization_barrier(plgpu.wgmma_accumulator_load(d_share_sum, wait_n=1))
                    d_score_RQ = share_RQ * d_share_RQ
                    d_score_RQ = d_score_RQ if whole else jnp.where(share_RQ == 0, 0.0, d_score_RQ)
                    plgpu.wgmma(d_k_sum, d_score_RQ.astype(dtype), q_tile)

                starts = (parts.load_columns(rows.at[slot]) for rows in (score_starts, d_share_starts))
                starts = (parts.spread_columns(x_Q, (ROWS, queries)) for x_Q in starts)
                *carry, _, _ = pl.run_state(products)(tuple(map(plgpu.ACC.init, (*carry, *starts))))
                plgpu.barrier_arrive(done.at[slot])
                return tuple(carry)

            def of_head(head, carry):
                spans = ((0, whole_from, False), (whole_from, whole_to, True), (whole_to, steps, False))
                for begin, end, whole in spans:
                    on = functools.partial(walk_on, first_step=head * steps, whole=whole)
                    carry = lax.fori_loop(begin, end, on, carry)
                return carry

            start = parts.full((ROWS, A), 0), parts.full((ROWS, C), 0)
            d_k_RA, d_v_RC = lax.fori_loop(0, heads, of_head, start)
            k_tile[...] = (d_k_RA * scale).astype(dtype)  # keys and values have been read
            v_tile[...] = d_v_RC.astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(k_tile, d_k.at[mine])
            plgpu.copy_smem_to_gmem(v_tile, d_v.at[mine])
            plgpu.wait_smem_to_gmem(0)

    tiles, barriers = functools.partial(parts.tiles_in_smem, dtype=dtype), parts.barriers
    numbers = plgpu.SMEM((stages, queries), jnp.float32)
    call = plgpu.kernel(
        kernel,
        out_type=(like(k_BTGA, k_BTGA.shape, dtype), like(v_BTGC, v_BTGC.shape, dtype)),
        scratch_types=[
            *(tiles(2, ROWS, A), tiles(2, ROWS, C), tiles(stages, queries, A), tiles(stages, queries, C)),
            *(numbers, numbers),
            *(barriers(2, 2), barriers(stages, 2), barriers(stages, 2), barriers(stages, 2)),
        ],
        grid=(B, num_tiles, G),
        grid_names=("batch", "tile", "group"),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        kernel_name="segment_attention_keys",
    )
    walk_BJ4 = key_walks(segments.key_BP, queries, TILE, window)
    return call(q_BTHA, k_BTGA, v_BTGC, *segments, *others, walk_BJ4)
