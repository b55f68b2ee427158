"""Grouped products out of plain XLA operations, made for CPU and correct everywhere.

What costs time is copies, and packing the same weights again for every small dot. So a group is few dots:
its rows are cut into chunks of about the mean group, the first one rounded up to one of a few static row
counts, and all chunks of one row count run in one loop that updates the result in place:

    for rows in (step, 2 step, ..., longest):          unrolled: static shapes
        while a chunk of this length is left:          dynamic trip count
            out[chunk] = lhs[chunk] @ rhs[its group]

Rounding up costs half a step per group, a sixteenth of the mean group. A chunk that reaches past its group,
or begins before it because the buffer ends, computes rows of other groups too; a select keeps what was there.
Branches (`lax.switch`) in the place of the loops would copy the whole result at every chunk.
"""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.grouped_matmul.reference import accumulator
from pallas_kernels.varying import vary, varying_axes

PLATFORM = None
MOST_LENGTHS = 8  # different chunk lengths; each is a loop in the program, and time to compile
MIN_STEP, MAX_STEP = 16, 128  # rows


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def chunk_lengths(num_rows: int, num_groups: int) -> tuple[int, ...]:
    """The static chunk lengths: multiples of a step, up to about the mean group."""
    mean = num_rows // num_groups
    step = MIN_STEP
    while step < MAX_STEP and step * MOST_LENGTHS < mean:
        step *= 2
    longest = min(-(-max(mean, 1) // step), MOST_LENGTHS) * step
    shorter_than_all = tuple(range(step, min(longest + 1, num_rows), step))
    return shorter_than_all + ((num_rows,) if num_rows <= longest else ())


def schedule(start_G, end_G, lengths: tuple[int, ...], num_rows: int):
    """Cut every group into one chunk of any length and then full ones; sort the chunks by length.

    Returns:
      (group, first row, end row) of every chunk C, and where in that order the chunks of each length stop.
      One more length at the end is for the full chunks that are not their group's first.
    """
    step, longest = lengths[0], lengths[-1]
    num_groups = start_G.shape[0]
    chunks_G = -(-(end_G - start_G) // longest)
    stop_G = jnp.cumsum(chunks_G)
    chunk_C = jnp.arange(num_groups + num_rows // longest, dtype=jnp.int32)
    group_C = jnp.sum(stop_G[None, :] <= chunk_C[:, None], axis=1, dtype=jnp.int32)
    exists_C = group_C < num_groups
    group_C = jnp.minimum(group_C, num_groups - 1)
    later_C = stop_G[group_C] - 1 - chunk_C  # chunks of the same group behind this one
    end_C = end_G[group_C] - later_C * longest
    first_C = jnp.maximum(end_C - longest, start_G[group_C])
    length_C = -(-(end_C - first_C) // step) - 1
    length_C = jnp.where(chunk_C > (stop_G - chunks_G)[group_C], len(lengths), length_C)
    length_C = jnp.where(exists_C, length_C, len(lengths) + 1)
    order_C = jnp.argsort(length_C)
    stop_L = jnp.sum(length_C[None, :] <= jnp.arange(len(lengths) + 1)[:, None], axis=1, dtype=jnp.int32)
    return (group_C[order_C], first_C[order_C], end_C[order_C]), stop_L


def for_each_chunk(update, out, num_rows: int, start_G, end_G):
    """Fold `out = update(out, group, at, inside, first)` over all chunks.

    The chunk's rows are as many as `inside` has, from row `at` on; those not `inside` are not the group's.
    `first` (static) says that no chunk of the group came before.
    """
    lengths = chunk_lengths(num_rows, start_G.shape[0])
    (group_C, first_C, end_C), stop_L = schedule(start_G, end_G, lengths, num_rows)
    carry = (jnp.zeros_like(stop_L[0]), out)
    balanced = expected_trips(num_rows, start_G.shape[0], lengths)
    for i, rows in enumerate((*lengths, lengths[-1])):

        def body(carry, rows=rows, first=i < len(lengths)):
            chunk, out = carry
            at = jnp.minimum(first_C[chunk], num_rows - rows)
            row_R = at + jnp.arange(rows, dtype=at.dtype)
            inside_R = (row_R >= first_C[chunk]) & (row_R < end_C[chunk])
            return chunk + 1, update(out, group_C[chunk], at, inside_R[:, None], first)

        with jax.named_scope(f"expected_trips_{balanced[i]}"):
            carry = lax.while_loop(lambda carry, i=i: carry[0] < stop_L[i], body, carry)
    return carry[1]


def expected_trips(num_rows: int, num_groups: int, lengths: tuple[int, ...]) -> list[int]:
    """How often each loop runs when all groups are equal: a reader of the compiled program cannot know."""
    more = -(-(num_rows // num_groups) // lengths[-1]) - 1
    return [0] * (len(lengths) - 1) + [num_groups, num_groups * more]


def matmul(lhs_MK, rhs, start_G, end_G, *scales, transpose_rhs: bool, dtype) -> jax.Array:
    """See `reference.matmul`; the transpose is the dot's own, as one of all of rhs would be a copy of it."""
    num_rows = lhs_MK.shape[0]
    dims = (((1,), (1 if transpose_rhs else 0,)), ((), ()))

    def update(out_MN, group, at, inside_R1, first):
        del first  # every row is written once
        lhs_RK = lax.dynamic_slice_in_dim(lhs_MK, at, len(inside_R1))
        # of 8-bit matrices only the one in use is there as floats
        rhs_of_group = lax.dynamic_index_in_dim(rhs, group, keepdims=False).astype(lhs_MK.dtype)
        product_RN = lax.dot_general(lhs_RK, rhs_of_group, dims, preferred_element_type=accumulator(lhs_MK))
        for scale_GN in scales:
            product_RN *= lax.dynamic_slice_in_dim(scale_GN, group, 1)
        before_RN = lax.dynamic_slice_in_dim(out_MN, at, len(inside_R1))
        after_RN = jnp.where(inside_R1, product_RN.astype(dtype), before_RN)
        return lax.dynamic_update_slice_in_dim(out_MN, after_RN, at, 0)

    out_MN = vary(jnp.zeros((num_rows, rhs.shape[1 if transpose_rhs else 2]), dtype), varying_axes(lhs_MK))
    return for_each_chunk(update, out_MN, num_rows, start_G, end_G)


scaled_matmul = matmul  # scales are one more operand


def outer(lhs_MK, rhs_MN, start_G, end_G, dtype) -> jax.Array:
    """See `reference.outer`."""
    num_rows, num_groups = lhs_MK.shape[0], start_G.shape[0]
    accum = accumulator(lhs_MK)

    def update(out_GKN, group, at, inside_R1, first):
        lhs_RK = jnp.where(inside_R1, lax.dynamic_slice_in_dim(lhs_MK, at, len(inside_R1)), 0)
        rhs_RN = jnp.where(inside_R1, lax.dynamic_slice_in_dim(rhs_MN, at, len(inside_R1)), 0)
        product_KN = jnp.matmul(lhs_RK.T, rhs_RN, preferred_element_type=accum)
        if not first:
            product_KN += lax.dynamic_index_in_dim(out_GKN, group, keepdims=False)
        return lax.dynamic_update_index_in_dim(out_GKN, product_KN, group, 0)

    shape = (num_groups, lhs_MK.shape[1], rhs_MN.shape[1])
    out_GKN = vary(jnp.zeros(shape, accum), varying_axes(lhs_MK))
    return for_each_chunk(update, out_GKN, num_rows, start_G, end_G).astype(dtype)
