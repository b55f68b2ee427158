"""The forward kernel of segment attention on Hopper GPUs.

A block of threads has 128 queries of one head and walks over the key blocks that they see, from the diagonal
back. A computing warp group keeps its 64 results, maxima and sums in registers:

    one step     products issued together:  scores of this block,  result += shares of the last block @ v
                 while the second runs:     shares of this block by the online softmax

and the two take turns at issuing (FlashAttention-3, https://arxiv.org/abs/2407.08608), so that the tensor
cores have one's products while the other is at its exponentials. Masks are for blocks that are not full.

The floor is arithmetic: 2 (A + C) operations per visible pair of positions and head, at T = 4096 and A = C =
128 about 60 times what the chip does in the time of the traffic, as the heads of a group, which run side
by side, find their keys and values in the L2 cache.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.segment_attention import gpu_parts as parts
from pallas_kernels.segment_attention.blocks import Walk, query_walks
from pallas_kernels.segment_attention.gpu_parts import FETCHER, PER_ROW, ROWS, TILE, Tiles, ring
from pallas_kernels.varying import like

LOWEST = -1e30  # below every score; finite, so that a row that has seen nothing yet needs no case of its own


def forward(operands, *, window: int | None, scale: float, how: Tiles):
    """From (q_BTHA, k_BTGA, v_BTGC, Segments): (o_BTHC, lse_BHP); P is T in whole tiles."""
    q_BTHA, k_BTGA, v_BTGC, segments = operands
    (B, T, H, A), (G, C), P = q_BTHA.shape, v_BTGC.shape[2:], segments.key_BP.shape[1]
    dtype, num_tiles, (keys, stages) = q_BTHA.dtype, P // TILE, how
    unit = scale * parts.LOG2_E

    def kernel(*refs):
        q, k, v, query_segments, key_segments, walks, o, lse, *scratch = refs
        q_tiles, k_tiles, v_tiles, lse_rows, q_there, k_there, v_there, k_done, v_done, turns = scratch
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
                parts.wait_for_room(k_done, step, stages)
                plgpu.copy_gmem_to_smem(k.at[batch, at, group], k_tiles.at[slot], k_there.at[slot])
                parts.wait_for_room(v_done, step, stages)
                plgpu.copy_gmem_to_smem(v.at[batch, at, group], v_tiles.at[slot], v_there.at[slot])

        @pl.when(me != FETCHER)
        def compute():
            plgpu.set_max_registers(parts.COMPUTE_REGISTERS, action="increase")
            first_row = tile * TILE + me * ROWS
            mine = (batch, pl.ds(first_row, ROWS), head)
            q_tile = q_tiles.at[me]
            plgpu.copy_gmem_to_smem(q.at[mine], q_tile, q_there.at[me])
            segment_R = parts.load_rows(query_segments.at[batch, pl.ds(first_row, ROWS)])

            @pl.when(me == 1)
            def _():
                plgpu.barrier_arrive(turns.at[0])

            def hide(score_RK, block):
                row_R = parts.rows_from(first_row)
                low_R = None if window is None else row_R - (window - 1)
                return parts.masked(score_RK, segment_R, key_segments.at[batch], block * keys, low_R, row_R)

            def softmax(score_RK, most_R, sum_R):
                new_most_R = jnp.maximum(most_R, jnp.max(score_RK, axis=1) * unit)
                share_RK = jnp.exp2(score_RK * unit - parts.spread_rows(new_most_R, score_RK.shape))
                shrink_R = jnp.exp2(most_R - new_most_R)
                sum_R = sum_R * shrink_R + jnp.sum(share_RK, axis=1)
                return share_RK, new_most_R, sum_R, shrink_R

            def first_scores(scores):
                plgpu.wgmma(scores, q_tile, parts.transposed(k_tiles.at[0]))
                return scores[...]

            plgpu.barrier_wait(q_there.at[me])
            plgpu.barrier_wait(k_there.at[0])
            score_RK = pl.run_scoped(first_scores, plgpu.ACC((ROWS, keys)))
            plgpu.barrier_arrive(k_done.at[0])
            most_R, sum_R = parts.full((ROWS,), LOWEST, PER_ROW), parts.full((ROWS,), 0, PER_ROW)
            share_RK, most_R, sum_R, _ = softmax(hide(score_RK, block_of(0)), most_R, sum_R)

            def walk_on(step, carry, whole: bool):
                o_RC, share_RK, most_R, sum_R = carry
                slot, slot_before = ring(step, stages), ring(step - 1, stages)
                plgpu.barrier_wait(k_there.at[slot])
                plgpu.barrier_wait(v_there.at[slot_before])
                plgpu.barrier_wait(turns.at[me])

                def products(refs):
                    result, scores, *state = refs
                    plgpu.wgmma(scores, q_tile, parts.transposed(k_tiles.at[slot]))
                    plgpu.wgmma(result, share_RK, v_tiles.at[slot_before])
                    plgpu.barrier_arrive(turns.at[1 - me])
                    score_RK = plgpu.wgmma_accumulator_load(scores, wait_n=1 if whole else 0)
                    score_RK = lax.optimization_barrier(score_RK)
                    plgpu.barrier_arrive(k_done.at[slot])
                    score_RK = score_RK if whole else hide(score_RK, block_of(step))
                    for ref, value in zip(state, softmax(score_RK, most_R, sum_R), strict=True):
                        ref[...] = value

                start = (plgpu.ACC.init(o_RC), plgpu.ACC.init(parts.full((ROWS, keys), 0)))
                o_RC, score_RK, *state = pl.run_state(products)(
                    (*start, parts.full((ROWS, keys), 0), most_R, sum_R, sum_R)
                )
                plgpu.barrier_arrive(v_done.at[slot_before])
                score_RK, most_R, sum_R, shrink_R = state
                # only now, as the shares that were here have been read
                share_RK = score_RK.astype(dtype)
                return o_RC * parts.spread_rows(shrink_R, o_RC.shape), share_RK, most_R, sum_R

            carry = (parts.full((ROWS, C), 0), share_RK.astype(dtype), most_R, sum_R)
            for begin, end, whole in (
                (1, whole_from, False),
                (whole_from, whole_to, True),
                (whole_to, steps, False),
            ):
                carry = lax.fori_loop(begin, end, functools.partial(walk_on, whole=whole), carry)
            o_RC, share_RK, most_R, sum_R = carry
            plgpu.barrier_wait(v_there.at[ring(steps - 1, stages)])
            last_product = lambda result: plgpu.wgmma(result, share_RK, v_tiles.at[ring(steps - 1, stages)])
            o_RC = pl.run_state(last_product)(plgpu.ACC.init(o_RC))

            blind_R = sum_R == 0
            o_RC *= parts.spread_rows(jnp.where(blind_R, 0.0, 1 / sum_R), o_RC.shape)
            o_tile = q_tile if A == C else q_tile.at[:, pl.ds(0, C)]  # its queries have been read
            o_tile[...] = o_RC.astype(dtype)
            lse_rows[me] = jnp.where(blind_R, -jnp.inf, (most_R + jnp.log2(sum_R)) / parts.LOG2_E)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(o_tile, o.at[mine])
            plgpu.copy_smem_to_gmem(lse_rows.at[me], lse.at[batch, head, pl.ds(first_row, ROWS)])
            plgpu.wait_smem_to_gmem(0)

    tiles, barriers = functools.partial(parts.tiles_in_smem, dtype=dtype), parts.barriers
    call = plgpu.kernel(
        kernel,
        out_type=(like(q_BTHA, (B, T, H, C), dtype), like(q_BTHA, (B, H, P), jnp.float32)),
        scratch_types=[
            *(tiles(2, ROWS, A), tiles(stages, keys, A), tiles(stages, keys, C)),
            plgpu.SMEM((2, ROWS), jnp.float32),
            *(barriers(2), barriers(stages), barriers(stages)),
            *(barriers(stages, 2), barriers(stages, 2), barriers(2)),
        ],
        grid=(B, num_tiles, H),
        grid_names=("batch", "tile", "head"),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        kernel_name="segment_attention_forward",
    )
    walk_BI4 = query_walks(segments.key_BP, TILE, keys, window)
    return call(q_BTHA, k_BTGA, v_BTGC, segments.query_BP, segments.key_BP, walk_BI4)
