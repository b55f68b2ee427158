"""Which blocks of keys the queries of a block see, found once per call from the segments, outside the kernels.

Positions are cut into blocks. A pair of a query block and a key block is one of three:

    unseen   no query sees a key: nobody visits it
    full     every query sees every key: visited without a mask
    partly   the diagonal, a segment's edge, the window's edge, padding: visited with a mask

The kernels walk from the first block that is seen to the last one. What is between them and unseen (only
where a segment's name comes back after other segments) costs time and changes nothing, because it is masked.
"""

from typing import NamedTuple

import jax.numpy as jnp


class Pairs(NamedTuple):
    """What is known of every pair of a block I of one kind and a block J of the other."""

    seen_BIJ: jnp.ndarray
    full_BIJ: jnp.ndarray
    solid_BJ: jnp.ndarray  # blocks J without padding

    def transposed(self, solid_BI) -> "Pairs":
        """The same pairs, seen from the other side."""
        return Pairs(jnp.swapaxes(self.seen_BIJ, 1, 2), jnp.swapaxes(self.full_BIJ, 1, 2), solid_BI)


class Walk(NamedTuple):
    """The walk of a block I over blocks J: from `first` up to `end`.

    Blocks in [full, full_end) are full. Only blocks from `dirty` on may hold padding.
    """

    first: jnp.ndarray
    end: jnp.ndarray
    full: jnp.ndarray
    full_end: jnp.ndarray
    dirty: jnp.ndarray


def query_walks(segment_BT, queries: int, keys: int, window: int | None) -> jnp.ndarray:
    """i32[B, query blocks, 5], the fields of `Walk` over blocks of keys; T is a multiple of both sizes."""
    return _walks(_pairs(segment_BT, queries, keys, window))


def key_walks(segment_BT, queries: int, keys: int, window: int | None) -> jnp.ndarray:
    """i32[B, key blocks, 5], the fields of `Walk` over blocks of queries; T is a multiple of both sizes."""
    pairs = _pairs(segment_BT, queries, keys, window)
    return _walks(pairs.transposed(_Blocks.of(segment_BT, queries).solid_BN))


class _Blocks(NamedTuple):
    """Blocks N of positions: first and last position, least and greatest segment."""

    first_N: jnp.ndarray
    last_N: jnp.ndarray
    least_BN: jnp.ndarray
    most_BN: jnp.ndarray
    solid_BN: jnp.ndarray

    @classmethod
    def of(cls, segment_BT, size: int) -> "_Blocks":
        B, T = segment_BT.shape
        first_N = jnp.arange(0, T, size)
        segment_BNS = jnp.reshape(segment_BT, (B, T // size, size))
        real_BNS = segment_BNS > 0
        beyond = jnp.iinfo(segment_BT.dtype).max
        least_BN = jnp.min(jnp.where(real_BNS, segment_BNS, beyond), axis=2)
        most_BN = jnp.max(jnp.where(real_BNS, segment_BNS, 0), axis=2)
        return cls(first_N, first_N + size - 1, least_BN, most_BN, jnp.all(real_BNS, axis=2))


def _pairs(segment_BT, queries: int, keys: int, window: int | None) -> Pairs:
    q, k = _Blocks.of(segment_BT, queries), _Blocks.of(segment_BT, keys)
    of_q = lambda x: x[..., :, None]
    of_k = lambda x: x[..., None, :]
    meet = (of_q(q.least_BN) <= of_k(k.most_BN)) & (of_k(k.least_BN) <= of_q(q.most_BN))
    alike = of_q(q.least_BN == q.most_BN) & (of_q(q.least_BN) == of_k(k.least_BN))
    alike &= of_k((k.least_BN == k.most_BN) & k.solid_BN) & of_q(q.solid_BN)
    near = of_q(q.last_N) >= of_k(k.first_N)
    all_near = of_q(q.first_N) >= of_k(k.last_N)
    if window is not None:
        near &= of_q(q.first_N) - of_k(k.last_N) < window
        all_near &= of_q(q.last_N) - of_k(k.first_N) < window
    return Pairs(meet & near[None], alike & all_near[None], k.solid_BN)


def _walks(pairs: Pairs) -> jnp.ndarray:
    num = pairs.seen_BIJ.shape[2]
    at_11J = jnp.arange(num)[None, None]
    # a block that sees nothing takes one step all the same, behind a mask, to write its zeros
    first_BI = jnp.min(jnp.where(pairs.seen_BIJ, at_11J, num - 1), axis=2)
    end_BI = jnp.maximum(jnp.max(jnp.where(pairs.seen_BIJ, at_11J + 1, 0), axis=2), first_BI + 1)
    full_end_BI = jnp.max(jnp.where(pairs.full_BIJ, at_11J + 1, 0), axis=2)
    before = ~pairs.full_BIJ & (at_11J < full_end_BI[..., None])
    full_BI = jnp.max(jnp.where(before, at_11J + 1, 0), axis=2)
    padded = ~pairs.solid_BJ[:, None, :] & (at_11J >= first_BI[..., None])
    dirty_BI = jnp.min(jnp.where(padded, at_11J, num), axis=2)
    walk = Walk(first_BI, end_BI, full_BI, full_end_BI, dirty_BI)
    return jnp.stack(walk, axis=2).astype(jnp.int32)
