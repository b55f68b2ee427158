"""Rows over a paged cache that is poisoned wherever no row may look, and their attention in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from pallas_kernels.slot_attention.shapes import SlotShape

NOWHERE = (-7, 10**6)  # page numbers where a row may not look


@dataclasses.dataclass(frozen=True)
class Case:
    """Queries, keys and values are functions of the seed, the slot and the position alone."""

    shape: SlotShape
    slot_N: np.ndarray
    position_N: np.ndarray
    seed: int = 0
    dtype: type = jnp.float32

    def dense(self):
        """q, k and v [Q, C, heads, A] of every position of every slot."""
        of, rng = self.shape, np.random.default_rng(self.seed)
        draw = lambda heads: rng.standard_normal((of.Q, of.J * of.S, heads, of.A)).astype(self.dtype)
        return draw(of.H), draw(of.G), draw(of.G)

    def live(self):
        of = self.shape
        slot_fits_N = (self.slot_N >= 0) & (self.slot_N < of.Q)
        return slot_fits_N & (self.position_N >= 0) & (self.position_N < of.J * of.S)

    def seen(self, n: int) -> slice:
        """Positions that an active row sees."""
        end = self.position_N[n] + 1
        return slice(0 if self.shape.window is None else max(end - self.shape.window, 0), end)

    def operands(self):
        """What `slot_attention` is called with."""
        of, (q_QCHA, k_QCGA, v_QCGA), live_N = self.shape, self.dense(), self.live()
        at_N = np.where(live_N, self.slot_N, 0), np.where(live_N, self.position_N, 0)
        q_NHA = np.where(live_N[:, None, None], q_QCHA[at_N], np.nan).astype(self.dtype)
        seen_QC = np.zeros((of.Q, of.J * of.S), bool)
        for n in np.flatnonzero(live_N):
            seen_QC[self.slot_N[n], self.seen(n)] = True
        rng = np.random.default_rng(self.seed)
        table_QJ = rng.permutation(of.P).reshape(of.Q, of.J).astype(np.int32)
        pages = [
            self._paged(np.where(seen_QC[:, :, None, None], x, np.nan), table_QJ) for x in (k_QCGA, v_QCGA)
        ]
        used_QJ = seen_QC.reshape(of.Q, of.J, of.S).any(axis=2)
        table_QJ = np.where(used_QJ, table_QJ, rng.choice(NOWHERE, table_QJ.shape)).astype(np.int32)
        return tuple(map(jnp.asarray, (q_NHA, *pages, self.slot_N, self.position_N, table_QJ)))

    def _paged(self, x_QCGA, table_QJ):
        of = self.shape
        page_PGSA = np.empty((of.P, of.G, of.S, of.A), self.dtype)
        page_PGSA[table_QJ] = np.swapaxes(x_QCGA.reshape(of.Q, of.J, of.S, of.G, of.A), 2, 3)
        return page_PGSA

    def oracle(self, scale: float | None = None) -> np.ndarray:
        """o_NHA in float64."""
        of, live_N = self.shape, self.live()
        q_QCHA, k_QCGA, v_QCGA = (x.astype(np.float64) for x in self.dense())
        o_NHA = np.zeros((len(self.slot_N), of.H, of.A))
        for n in np.flatnonzero(live_N):
            slot, seen = self.slot_N[n], self.seen(n)
            for h in range(of.H):
                k_CA, v_CA = (x[slot, seen, h // (of.H // of.G)] for x in (k_QCGA, v_QCGA))
                score_C = (
                    k_CA @ q_QCHA[slot, self.position_N[n], h] * (of.A**-0.5 if scale is None else scale)
                )
                weight_C = np.exp(score_C - score_C.max())
                o_NHA[n, h] = weight_C @ v_CA / weight_C.sum()
        return o_NHA


def of_chunks(shape: SlotShape, chunks, rows: int, **settings) -> Case:
    """The rows of (slot, first position, length), one chunk after the other, then inactive rows."""
    slot = [slot for slot, _, length in chunks for _ in range(length)]
    position = [first + i for _, first, length in chunks for i in range(length)]
    spare = rows - len(slot)
    slot_N = np.array(slot + [-1, shape.Q] * (spare // 2) + [-1] * (spare % 2), np.int32)
    return Case(shape, slot_N, np.array(position + [3] * spare, np.int32), **settings)


def any_chunks(shape: SlotShape, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Up to as many rows as the shape has, in chunks of different slots, most of them short."""
    chunks, left = [], rng.integers(1, shape.N + 1)
    while left > 0:
        length = int(min(left, 1 + rng.geometric(0.3) * rng.integers(0, 2), shape.J * shape.S))
        chunks.append((int(rng.integers(shape.Q)), int(rng.integers(shape.J * shape.S - length + 1)), length))
        left -= length
    return chunks
