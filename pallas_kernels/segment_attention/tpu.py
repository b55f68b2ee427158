"""Segment attention on TPU, in Pallas (Mosaic).

A block of queries, those of all query heads of a group, walks over the key blocks that it sees; for the
gradients of keys and values a block of keys walks over the queries that see it. The walks are found from the
segments before a kernel starts and prefetched as scalars, so that blocks of other segments and blocks out of
the window are neither fetched nor computed, and blocks in which everything is visible have no mask.

Scores are held as [keys, queries]: largest and sum of a query are then rows of lanes, as they are stored, and
scale results that are held as [width, queries] without any transpose until the walk's end.

Letters: B rows, T positions in whole blocks, G key/value heads, h query heads of each, Q queries and K keys
of a block, R = h Q rows of a product, P keys that are worked on at once, N blocks, A and C widths.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.segment_attention import tpu_blocks
from pallas_kernels.segment_attention.blocks import Walk, key_walks, query_walks
from pallas_kernels.segment_attention.tpu_blocks import Blocks, Problem
from pallas_kernels.tpu_chips import this_chip
from pallas_kernels.varying import like

PLATFORM = "tpu"
DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))
WIDTH_STEP, MOST_WIDTH = 64, 256
WALKS_IN_SMEM = 2**16  # numbers of 4 bytes
MASKED = -1e30  # a score below all others; finite, so that no difference of two is NaN


def refusal(function: str, q_BTHA, k_BTGA, v_BTGC, segment_BT, *others, window, **static) -> str | None:
    """Why these operands cannot be served, or None."""
    if q_BTHA.dtype not in DTYPES:
        names = " and ".join(dtype.name for dtype in DTYPES)
        return f"it multiplies {names}, not {q_BTHA.dtype.name}"
    (B, T, H, A), (G, C) = q_BTHA.shape, v_BTGC.shape[2:]
    if max(A, C) > MOST_WIDTH:
        return f"heads are {max(A, C)} wide, and its blocks take at most {MOST_WIDTH}"
    least = min(tpu_blocks.SIZES)
    if H // G * least > tpu_blocks.MOST_ROWS:
        most = tpu_blocks.MOST_ROWS // least
        return f"{H // G} query heads share a key/value head, and its blocks take at most {most}"
    if B * -(-T // least) * len(Walk._fields) > WALKS_IN_SMEM:
        return f"the walks of {B} rows of {T} positions do not fit in SMEM"
    return None


def forward(q_BTHA, k_BTGA, v_BTGC, segment_BT, *, window: int | None, scale: float):
    """See `reference`."""
    of = _Shape.of(q_BTHA, v_BTGC, window)
    q, k, v = of.queries(q_BTHA, segment_BT), of.keys(k_BTGA, segment_BT), of.keys(v_BTGC, segment_BT)
    B, C, R = len(q_BTHA), v.shape[-1], of.num_rows
    o_BGhTC, lse_BGN1R = _walk(
        functools.partial(_forward_kernel, scale=scale),
        of,
        segment_BT,
        {"queries": [q], "keys": [k, v]},
        {
            "queries": [like(q, (*q.shape[:4], C), q.dtype)],
            "rows": [like(q, (B, of.G, of.padded // of.blocks.queries, 1, R), jnp.float32)],
        },
        [(C, R), (1, R), (1, R)],
    )
    return of.queries_back(o_BGhTC, v_BTGC.shape[3]), of.rows_back(lse_BGN1R), None


def backward(
    q_BTHA,
    k_BTGA,
    v_BTGC,
    segment_BT,
    lse_BHT,
    delta_BHT,
    d_o_BTHC,
    kept,
    *,
    window: int | None,
    scale: float,
):
    """See `reference`."""
    del kept
    of = _Shape.of(q_BTHA, v_BTGC, window)
    q, d_o = of.queries(q_BTHA, segment_BT), of.queries(d_o_BTHC, segment_BT)
    k, v = of.keys(k_BTGA, segment_BT), of.keys(v_BTGC, segment_BT)
    delta_BHT = jnp.where((segment_BT > 0)[:, None], delta_BHT, 0)
    operands = {"queries": [q, d_o], "keys": [k, v], "rows": [of.rows(lse_BHT), of.rows(delta_BHT)]}
    A, C, K = k.shape[-1], v.shape[-1], of.blocks.keys
    kernel = functools.partial(_queries_kernel, scale=scale)
    outs = {"queries": [like(q, q.shape, q.dtype)]}
    (d_q,) = _walk(kernel, of, segment_BT, operands, outs, [(A, of.num_rows)])
    kernel = functools.partial(_keys_kernel, scale=scale)
    outs = {"keys": [like(x, x.shape, x.dtype) for x in (k, v)]}
    d_k, d_v = _walk(kernel, of, segment_BT, operands, outs, [(K, A), (K, C)], back=True)
    A, C = q_BTHA.shape[3], v_BTGC.shape[3]
    return of.queries_back(d_q, A), of.keys_back(d_k, A), of.keys_back(d_v, C)


class _Shape(NamedTuple):
    """What is static of a call, and how its arrays are laid out for the kernels.

    A transpose copies in any case, so padding costs nothing more: T to whole blocks, widths to a multiple
    of WIDTH_STEP, and zeros for what the buffers of padding hold.
    """

    T: int  # as given
    G: int
    heads: int  # query heads of a key/value head
    blocks: Blocks
    window: int | None
    vmem: int

    @classmethod
    def of(cls, q_BTHA, v_BTGC, window: int | None) -> "_Shape":
        (B, T, H, A), (G, C) = q_BTHA.shape, v_BTGC.shape[2:]
        problem = Problem(B, T, G, H // G, A, C, window, q_BTHA.dtype.itemsize)
        blocks = tpu_blocks.choose(problem, this_chip())
        return cls(T, G, H // G, blocks, window, tpu_blocks.vmem(problem, blocks))

    @property
    def num_rows(self) -> int:
        """Rows of a product: a block's queries in all heads of a group."""
        return self.heads * self.blocks.queries

    @property
    def padded(self) -> int:
        """T in whole blocks."""
        return self.blocks.padded(self.T)

    def queries(self, x_BTHA, segment_BT):
        """[B, G, h, T, A]."""
        x_BHTA = self.keys(x_BTHA, segment_BT)
        return jnp.reshape(x_BHTA, (len(x_BHTA), self.G, self.heads, *x_BHTA.shape[2:]))

    def keys(self, x_BTGA, segment_BT):
        """[B, G, T, A]."""
        x_BTGA = jnp.where((segment_BT > 0)[:, :, None, None], x_BTGA, 0)
        more = ((0, 0), (0, self.padded - self.T), (0, 0), (0, -x_BTGA.shape[3] % WIDTH_STEP))
        return jnp.swapaxes(jnp.pad(x_BTGA, more), 1, 2)

    def rows(self, x_BHT):
        """[B, G, N, 1, R]: the queries of a block side by side, head after head."""
        B, N, Q = len(x_BHT), self.padded // self.blocks.queries, self.blocks.queries
        x_BHT = jnp.pad(x_BHT, ((0, 0), (0, 0), (0, self.padded - x_BHT.shape[2])))
        x_BGhNQ = jnp.reshape(x_BHT, (B, self.G, self.heads, N, Q))
        return jnp.reshape(jnp.moveaxis(x_BGhNQ, 2, 3), (B, self.G, N, 1, self.num_rows))

    def queries_back(self, x_BGhTA, width: int):
        return self.keys_back(lax.collapse(x_BGhTA, 1, 3), width)

    def keys_back(self, x_BGTA, width: int):
        return jnp.swapaxes(x_BGTA[:, :, : self.T, :width], 1, 2)

    def rows_back(self, x_BGN1R):
        B, G, N, _, _ = x_BGN1R.shape
        x_BGNhQ = jnp.reshape(x_BGN1R, (B, G, N, self.heads, self.blocks.queries))
        return jnp.reshape(jnp.moveaxis(x_BGNhQ, 3, 2), (B, G * self.heads, self.padded))[:, :, : self.T]


def _walk(kernel, of: _Shape, segment_BT, operands, outs, sums, back: bool = False):
    """Run a kernel: query blocks walk over key blocks, or key blocks over query blocks (`back`).

    Args:
      kernel: given a `_Visit` and then, as references, operands, outs and sums.
      operands, outs: arrays and types by what their blocks are of: "queries", "keys" or "rows".
      sums: shapes of the float32 scratch.
    """
    Q, K, T = of.blocks.queries, of.blocks.keys, of.padded
    segment_BT = jnp.pad(segment_BT, ((0, 0), (0, T - of.T)))
    real_BT = segment_BT > 0
    walks = (key_walks if back else query_walks)(segment_BT, Q, K, of.window)
    B, num_own, _ = walks.shape
    longest = max((of.blocks.walks_back if back else of.blocks.walks)(T, of.window))

    def other(b, n, s, walks):
        """The block that is visited; beyond the walk's end the last one, which is there already."""
        at = (b * num_own + n) * len(Walk._fields)
        return jnp.minimum(
            walks[at + Walk._fields.index("first")] + s, walks[at + Walk._fields.index("end")] - 1
        )

    own = lambda b, n, s, walks: n
    query, key = (other, own) if back else (own, other)

    def spec(kind, x):
        width = x.shape[-1]
        return {
            "queries": pl.BlockSpec(
                (None, None, of.heads, Q, width), lambda b, g, *at: (b, g, 0, query(b, *at), 0)
            ),
            "keys": pl.BlockSpec((None, None, K, width), lambda b, g, *at: (b, g, key(b, *at), 0)),
            "rows": pl.BlockSpec((None, None, None, 1, width), lambda b, g, *at: (b, g, query(b, *at), 0, 0)),
        }[kind]

    # a padding key has another name than a padding query, so that one comparison is enough
    key_segment_BT1 = jnp.where(real_BT, segment_BT, -1)[:, :, None]
    query_segment_BHT = jnp.broadcast_to(jnp.where(real_BT, segment_BT, 0)[:, None], (B, of.G * of.heads, T))
    query_segment_BGN1R = of.rows(query_segment_BHT)

    def visiting(walks, key_segment_K1, query_segment_1R, *refs):
        b, n, s = pl.program_id(0), pl.program_id(2), pl.program_id(3)
        walk = Walk(*(walks[(b * num_own + n) * len(Walk._fields) + i] for i in range(len(Walk._fields))))
        at = walk.first + s
        is_full = (at >= walk.full) & (at < walk.full_end)
        i, j = (at, n) if back else (n, at)

        def seen_PR(keys):
            at_R = i * Q + lax.rem(lax.broadcasted_iota(jnp.int32, (1, of.num_rows), 1), Q)
            behind_PR = at_R - (j * K + keys.start + lax.broadcasted_iota(jnp.int32, (keys.size, 1), 0))
            seen_PR = (behind_PR >= 0) & (key_segment_K1[keys, :] == query_segment_1R[...])
            return seen_PR if of.window is None else seen_PR & (behind_PR < of.window)

        def in_parts(step, visible):
            part = of.blocks.part(of.heads)

            @pl.loop(0, K // part)
            def _(p):
                keys = pl.ds(pl.multiple_of(p * part, part), part)
                step(keys, None if visible else seen_PR(keys))

        def on_visit(step):
            pl.when((at < walk.end) & is_full)(lambda: in_parts(step, visible=True))
            pl.when((at < walk.end) & ~is_full)(lambda: in_parts(step, visible=False))

        kernel(_Visits(s == 0, s == longest - 1, on_visit), *refs)

    in_specs = [pl.BlockSpec((None, K, 1), lambda b, g, *at: (b, key(b, *at), 0))]
    in_specs += [spec("rows", query_segment_BGN1R)]
    in_specs += [spec(kind, x) for kind, arrays in operands.items() for x in arrays]
    call = pl.pallas_call(
        visiting,
        [x for arrays in outs.values() for x in arrays],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, of.G, num_own, longest),
            in_specs=in_specs,
            out_specs=[spec(kind, x) for kind, arrays in outs.items() for x in arrays],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in sums],
        ),
        compiler_params=pltpu.CompilerParams(
            ("parallel", "parallel", "parallel", "arbitrary"), vmem_limit_bytes=of.vmem
        ),
        name=kernel.func.__name__.strip("_"),
    )
    flat = [x for arrays in operands.values() for x in arrays]
    return call(jnp.ravel(walks), key_segment_BT1, query_segment_BGN1R, *flat)


class _Visits(NamedTuple):
    """Where a kernel is in the walk of its block."""

    first: jax.Array
    last: jax.Array
    each: (
        Callable  # each(step): if this visit has something to do, step(keys, seen) for every part of the keys
    )


def _forward_kernel(visits: _Visits, q, k, v, o, lse, sum_CR, top_1R, sum_1R, *, scale: float):
    @pl.when(visits.first)
    def _():
        sum_CR[...] = jnp.zeros_like(sum_CR)
        top_1R[...] = jnp.full_like(top_1R, MASKED)
        sum_1R[...] = jnp.zeros_like(sum_1R)

    @visits.each
    def _(keys, seen_PR):
        score_PR = _where(seen_PR, _dot(k[keys, :], _rows(q), (1, 1)) * scale, MASKED)
        new_top_1R = jnp.maximum(top_1R[...], jnp.max(score_PR, axis=0, keepdims=True))
        share_PR = _where(seen_PR, jnp.exp(score_PR - new_top_1R), 0.0)
        fade_1R = jnp.exp(top_1R[...] - new_top_1R)
        sum_1R[...] = sum_1R[...] * fade_1R + jnp.sum(share_PR, axis=0, keepdims=True)
        sum_CR[...] = sum_CR[...] * fade_1R + _dot(v[keys, :], share_PR.astype(v.dtype), (0, 0))
        top_1R[...] = new_top_1R

    @pl.when(visits.last)
    def _():
        total_1R = sum_1R[...]
        mean_CR = sum_CR[...] / jnp.where(total_1R == 0.0, 1.0, total_1R)
        o[...] = jnp.reshape(mean_CR.T, o.shape).astype(o.dtype)
        lse[...] = jnp.where(total_1R == 0.0, -jnp.inf, top_1R[...] + jnp.log(total_1R))


def _queries_kernel(visits: _Visits, q, d_o, k, v, lse, delta, d_q, sum_AR, *, scale: float):
    @pl.when(visits.first)
    def _():
        sum_AR[...] = jnp.zeros_like(sum_AR)

    @visits.each
    def _(keys, seen_PR):
        k_PA, v_PC = k[keys, :], v[keys, :]
        _, d_score_PR = _slopes((_rows(q), k_PA), (_rows(d_o), v_PC), lse, delta, seen_PR, scale)
        sum_AR[...] += _dot(k_PA, d_score_PR, (0, 0))

    @pl.when(visits.last)
    def _():
        d_q[...] = jnp.reshape(sum_AR[...].T, d_q.shape).astype(d_q.dtype)


def _keys_kernel(visits: _Visits, q, d_o, k, v, lse, delta, d_k, d_v, sum_KA, sum_KC, *, scale: float):
    @pl.when(visits.first)
    def _():
        sum_KA[...] = jnp.zeros_like(sum_KA)
        sum_KC[...] = jnp.zeros_like(sum_KC)

    @visits.each
    def _(keys, seen_PR):
        q_RA, d_o_RC = _rows(q), _rows(d_o)
        of_scores, of_shares = (q_RA, k[keys, :]), (d_o_RC, v[keys, :])
        share_PR, d_score_PR = _slopes(of_scores, of_shares, lse, delta, seen_PR, scale)
        sum_KA[keys, :] += _dot(d_score_PR, q_RA, (1, 0))
        sum_KC[keys, :] += _dot(share_PR, d_o_RC, (1, 0))

    @pl.when(visits.last)
    def _():
        d_k[...] = sum_KA[...].astype(d_k.dtype)
        d_v[...] = sum_KC[...].astype(d_v.dtype)


def _slopes(of_scores, of_shares, lse, delta, seen_PR, scale: float):
    """The shares of the softmax, and the gradient of the products of queries and keys."""
    (q, k), (d_o, v) = of_scores, of_shares
    share_PR = _where(seen_PR, jnp.exp(_dot(k, q, (1, 1)) * scale - lse[...]), 0.0)
    d_score_PR = share_PR * (_dot(v, d_o, (1, 1)) - delta[...]) * scale
    return share_PR.astype(q.dtype), d_score_PR.astype(q.dtype)


def _where(seen_PR, x_PR, unseen: float):
    """`x` where a query sees a key; None = everywhere."""
    return x_PR if seen_PR is None else jnp.where(seen_PR, x_PR, unseen)


def _rows(x_hQA):
    """All heads of the group under one another."""
    return jnp.reshape(x_hQA[...], (-1, x_hQA.shape[-1]))


def _dot(left, right, contracted: tuple[int, int]):
    """A product summed in float32; float32 operands are not rounded, which the matrix unit would do."""
    exact = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dims = (((contracted[0],), (contracted[1],)), ((), ()))
    return lax.dot_general(left, right, dims, precision=exact, preferred_element_type=jnp.float32)
