"""How likely a model finds given text: log-probabilities of what follows a context."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config import require
from moejax.model import forward as decoder
from moejax.seams import Batch
from moejax.serving.generate import MIN_PROMPT, bucket

POSITIONS = 64  # whose logits are in memory at a time


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one continuation."""

    log_prob: float  # nats, of all its tokens together
    is_greedy: bool  # each token is the most likely one


def score(
    model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_rows: int = 8
) -> Iterator[tuple[int, Score]]:
    """(index of the pair, its score) in the order in which they are computed, the longest first.

    Args:
      model: a `moejax.Model` in its causal form.
      pairs: (context, continuation) as token ids. Of a context that is too long the end is taken.
      batch_rows: pairs that are computed together; with the model's context it bounds the memory.

    Raises:
      UsageError: a context is empty, or a continuation does not fit into the model's context.
    """
    groups = collections.defaultdict(list)
    for i, (context, continuation) in enumerate(pairs):
        require(len(context) > 0, f"pair {i} has no context; begin it with the begin token")
        require(
            len(continuation) <= model.context,
            f"the continuation of pair {i} has {len(continuation)} tokens, the model takes {model.context}",
        )
        groups[bucket(len(context) + len(continuation) - 1, MIN_PROMPT, model.context)].append(i)
    for length in sorted(groups, reverse=True):
        for first in range(0, len(groups[length]), batch_rows):
            own = groups[length][first : first + batch_rows]
            batch, target_BT, scored_BT = _rows([pairs[i] for i in own], batch_rows, length)
            found = _scores(model.params, model.sides, batch, target_BT, scored_BT, m=model.cfg)
            for i, log_prob, is_greedy in zip(own, *map(np.asarray, found), strict=False):
                yield i, Score(float(log_prob), bool(is_greedy))


def _rows(pairs, num_rows: int, length: int) -> tuple[Batch, np.ndarray, np.ndarray]:
    """(inputs, what follows each of them, which of that is continuation) of at most `num_rows` pairs."""
    token_BT, target_BT = np.zeros((2, num_rows, length), np.int32)
    valid_BT, scored_BT = np.zeros((2, num_rows, length), bool)
    for b, (context, continuation) in enumerate(pairs):
        ids = [*context, *continuation][-(length + 1) :]
        size = len(ids) - 1
        token_BT[b, :size], target_BT[b, :size], valid_BT[b, :size] = ids[:-1], ids[1:], True
        scored_BT[b, size - len(continuation) : size] = True
    pos_BT = np.broadcast_to(np.arange(length, dtype=np.int32), token_BT.shape)
    return Batch(token_BT, pos_BT, valid_BT.astype(np.int32), valid_BT), target_BT, scored_BT


@functools.partial(jax.jit, static_argnames="m")
def _scores(params, sides, batch: Batch, target_BT, scored_BT, *, m):
    """(sum of log-probabilities f32 [B], whether all are the most likely bool [B])."""
    hidden_BTD = decoder.forward(params, m, batch, sides=sides).hidden_BTD

    def one(position):
        hidden_BD, target_B = position
        logits_BV = decoder.unembed(params, m, hidden_BD[:, None])[:, 0]
        chosen_B1 = jnp.take_along_axis(logits_BV, target_B[:, None], axis=1)
        log_prob_B = chosen_B1[:, 0] - jax.nn.logsumexp(logits_BV, axis=1)
        return log_prob_B, jnp.argmax(logits_BV, axis=1) == target_B

    by_position = jnp.moveaxis(hidden_BTD, 1, 0), target_BT.T
    log_prob_TB, greedy_TB = jax.lax.map(one, by_position, batch_size=POSITIONS)
    log_prob_B = jnp.sum(jnp.where(scored_BT, log_prob_TB.T, 0), axis=1)
    return log_prob_B, jnp.all(greedy_TB.T | ~scored_BT, axis=1)
