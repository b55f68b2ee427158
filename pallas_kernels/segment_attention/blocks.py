"""Which blocks of keys the queries of a block see, found from the segments before the kernels run.

Positions are cut into blocks. A pair of a query block and a key block is one of three:

    unseen   no query sees a key: nobody visits it
    full     every query sees every key: visited without a mask
    partly   the diagonal, a segment's edge, the window's edge, padding: visited with a mask

The kernels walk from the first block that is seen to the last one. What is between them and unseen (only
where a segment's name comes back after other segments) costs time and changes nothing, because it is masked.
"""

from typing import NamedTuple

import jax.numpy as jnp


class Segments(NamedTuple):
    """The segments of P positions, T in whole blocks; padding differs, so that it is equal to nothing."""

    query_BP: jnp.ndarray  # -1 for padding
    key_BP: jnp.ndarray  # 0 for padding

    @classmethod
    def of(cls, segment_BT, size: int) -> "Segments":
        """The positions past T are padding too."""
        more = ((0, 0), (0, -segment_BT.shape[1] % size))
        named = lambda value: jnp.where(segment_BT > 0, segment_BT, value)
        return cls(*(jnp.pad(named(value), more, constant_values=value) for value in (-1, 0)))


def zero_padding(segment_BT, x_BTHA):
    """`x` without what padding holds; XLA joins this pass to whatever makes `x`."""
    return jnp.where((segment_BT > 0)[:, :, None, None], x_BTHA, 0)


class Pairs(NamedTuple):
    """What is known of every pair of a block I of one kind and a block J of the other."""

    seen_BIJ: jnp.ndarray
    full_BIJ: jnp.ndarray


class Walk(NamedTuple):
    """The walk of a block I over blocks J: from `first` up to `end`.

    Blocks in [full, full_end) are full.
    """

    first: jnp.ndarray
    end: jnp.ndarray
    full: jnp.ndarray
    full_end: jnp.ndarray


def query_walks(segment_BT, queries: int, keys: int, window: int | None) -> jnp.ndarray:
    """i32[B, query blocks, 4], the fields of `Walk` over blocks of keys; T is a multiple of both sizes."""
    return _walks(_pairs(segment_BT, queries, keys, window))


def key_walks(segment_BT, queries: int, keys: int, window: int | None) -> jnp.ndarray:
    """i32[B, key blocks, 4], the fields of `Walk` over blocks of queries; T is a multiple of both sizes."""
    return _walks(Pairs(*(jnp.swapaxes(x_BIJ, 1, 2) for x_BIJ in _pairs(segment_BT, queries, keys, window))))


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
    return Pairs(meet & near[None], alike & all_near[None])


def _walks(pairs: Pairs) -> jnp.ndarray:
    num = pairs.seen_BIJ.shape[2]
    at_11J = jnp.arange(num)[None, None]
    # a block that sees nothing takes one step all the same, behind a mask, to write its zeros
    first_BI = jnp.min(jnp.where(pairs.seen_BIJ, at_11J, num - 1), axis=2)
    end_BI = jnp.maximum(jnp.max(jnp.where(pairs.seen_BIJ, at_11J + 1, 0), axis=2), first_BI + 1)
    full_end_BI = jnp.max(jnp.where(pairs.full_BIJ, at_11J + 1, 0), axis=2)
    before = ~pairs.full_BIJ & (at_11J < full_end_BI[..., None])
    full_BI = jnp.max(jnp.where(before, at_11J + 1, 0), axis=2)
    walk = Walk(first_BI, end_BI, full_BI, full_end_BI)
    return jnp.stack(walk, axis=2).astype(jnp.int32)
