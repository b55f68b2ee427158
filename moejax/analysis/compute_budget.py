"""Which token gets how much compute: the least total loss under a total budget, without an integer program.

Input is the loss of every token for each number of big layers (`route_oracle.Oracle.loss_CBT`), which need
not fall or be convex: more layers can be worse. Not part of Duo-LLM (arXiv 2410.10846), whose budgets are
equal for all.

allocate        the lower convex hull of each token's losses, steps taken in the order of their gain per
                layer: exact wherever the total is spent at the end of a step, otherwise within `gap` of the
                optimum.
allocate_exact  dynamic programming over the total, O(tokens * total * C): the optimum, for a few thousand
                tokens.
"""

import dataclasses
import itertools

import numpy as np

from moejax.config import require


@dataclasses.dataclass(frozen=True)
class Allocation:
    """How many layers each token gets."""

    layers_N: np.ndarray  # i32
    loss: float  # their sum over tokens
    gap: float  # at most this far above the optimum


def allocate(loss_NC: np.ndarray, total: int) -> Allocation:
    """Spend at most `total` layers on tokens whose losses for 0..C-1 layers are given."""
    loss_NC = _checked(loss_NC, total)
    token, start, end, gain = _hull_steps(loss_NC)
    size = end - start
    order = np.lexsort(
        (start, token, -gain / size)
    )  # a token's own steps have falling slopes: they stay in order
    token, start, end, gain, size = (x[order] for x in (token, start, end, gain, size))
    fits = np.cumsum(size) <= total
    layers_N = np.zeros(len(loss_NC), np.int32)
    np.maximum.at(layers_N, token[fits], end[fits])
    gap = 0.0
    if not fits.all():
        left = total - size[fits].sum()
        first = np.flatnonzero(~fits)[0]
        gap = gain[first] / size[first] * left  # what the rest would gain if a step could be divided
    loss = float(loss_NC[np.arange(len(loss_NC)), layers_N].sum())
    return Allocation(layers_N, loss, float(gap))


def allocate_exact(loss_NC: np.ndarray, total: int) -> Allocation:
    """As `allocate`, without a gap."""
    loss_NC = _checked(loss_NC, total)
    N, C = loss_NC.shape
    least_S = np.zeros(total + 1)  # of the tokens so far, spending at most s
    choice_NS = np.zeros((N, total + 1), np.int16)
    for n in range(N):
        tried_CS = np.full((C, total + 1), np.inf)
        for c in range(min(C, total + 1)):
            tried_CS[c, c:] = least_S[: total + 1 - c] + loss_NC[n, c]
        choice_NS[n] = np.argmin(tried_CS, axis=0)
        least_S = np.min(tried_CS, axis=0)
    layers_N, left = np.zeros(N, np.int32), total
    for n in reversed(range(N)):
        layers_N[n] = choice_NS[n, left]
        left -= layers_N[n]
    return Allocation(layers_N, float(least_S[total]), 0.0)


def _checked(loss_NC, total) -> np.ndarray:
    loss_NC = np.asarray(loss_NC, np.float64)
    require(
        loss_NC.ndim == 2 and loss_NC.size > 0,
        f"losses of shape {loss_NC.shape}: expected [tokens, layers + 1]",
    )
    require(
        bool(np.isfinite(loss_NC).all()),
        "a loss is not finite; try every number of big layers for every token",
    )
    require(total >= 0, f"total={total} layers must not be negative")
    return loss_NC


def _hull_steps(loss_NC):
    """(token, from, to, gain) of every falling edge of each token's lower convex hull."""
    steps = []
    for token, loss_C in enumerate(loss_NC):
        hull = [0]
        for c in range(1, len(loss_C)):
            if loss_C[c] >= loss_C[hull[-1]]:
                continue
            while len(hull) > 1 and _above(loss_C, hull[-2], hull[-1], c):
                hull.pop()
            hull.append(c)
        steps += [(token, a, b, loss_C[a] - loss_C[b]) for a, b in itertools.pairwise(hull)]
    columns = np.array(steps, np.float64).reshape(-1, 4).T
    token, start, end = columns[:3].astype(np.int64)
    return token, start, end, columns[3]


def _above(loss_C, a, b, c) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (loss_C[b] - loss_C[a]) * (c - a) >= (loss_C[c] - loss_C[a]) * (b - a)
