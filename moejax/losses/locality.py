"""Few experts over a whole chunk of tokens.

BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with Chunk-Level Activation Sparsity (Song
et al. 2025, arXiv 2507.08771). With a0 the router's logits and a1 = relu(a0), here the
positive part of its scores:

ActivationLocality  mean over neighbours t, t+1 and experts of the cross-entropy of sigmoid(alpha a0[t])
                    against sigmoid(alpha a0[t+1]); both tokens have a gradient.
ChunkSparsity       p = a1 / (sum_e a1 + 1e-5); mean over chunks and experts of
                    P_e = 1 - exp(sum over the chunk of log(1 - p_e + 1e-5)), the chance that any token of the
                    chunk uses e, times a factor that grows while P stops falling.

Neighbours and chunks are of one document in one row; the end of a document or row may be a shorter chunk.
Both are averaged over layers. Uniform scores and one-hot scores are not at zero but at the entropy of the
soft pattern, and 1/E.

Differs from the paper, besides chunks that never straddle documents: the factor moves to its next value
linearly over a period and is at most 4, as in the paper's code; the first period has none before it and
changes nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax.config import require
from moejax.losses.base import Loss, mean_over_layers

EPS = 1e-5  # of the shares, and within the logarithm: a share of 1 is common


@dataclasses.dataclass(frozen=True)
class ActivationLocality(Loss):
    weight: float = 2e-3  # lambda_al; 1e-3 in the 0.8B model
    alpha: float = 100.0  # sharpness of the sigmoids

    def probe(self, out, batch):
        if out.routing is None:
            return {}
        a_BTE = self.alpha * out.routing.logit_BTE
        here_BTE, next_BTE = a_BTE[:, :-1], a_BTE[:, 1:]
        pair_BT = (
            batch.valid_BT[:, :-1] & batch.valid_BT[:, 1:] & (batch.seg_BT[:, :-1] == batch.seg_BT[:, 1:])
        )
        chosen_BTE = jax.nn.sigmoid(next_BTE) * jax.nn.softplus(-here_BTE)
        unchosen_BTE = jax.nn.sigmoid(-next_BTE) * jax.nn.softplus(here_BTE)
        entropy_BT = jnp.mean(chosen_BTE + unchosen_BTE, axis=-1)
        return {
            "entropy": jnp.sum(jnp.where(pair_BT, entropy_BT, 0.0)),
            "pairs": jnp.sum(pair_BT, dtype=entropy_BT.dtype),
        }

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        loss = mean_over_layers(stats, lambda seen: seen["entropy"] / jnp.maximum(seen["pairs"], 1.0))
        return loss, state, {"loss/activation_locality": loss}


@dataclasses.dataclass(frozen=True)
class ChunkSparsity(Loss):
    weight: float = 5e-2  # lambda_cs at the start; 0.1 in the 2.8B model
    chunk: int = 64  # tokens
    constant_steps: int = 1000  # N_st, before the factor may move
    period: int = 100  # N_adj, steps
    growth: float = 1.025  # gamma_min, of the factor whenever P has not fallen
    max_factor: float = 4.0

    def __post_init__(self):
        for name, least in (
            ("chunk", 1),
            ("constant_steps", 0),
            ("period", 1),
            ("growth", 1),
            ("max_factor", 1),
        ):
            value = getattr(self, name)
            require(value >= least, f"losses[].{name}={value} must be at least {least}")

    def init(self, m):
        zero, one = jnp.zeros(()), jnp.ones(())
        return {"step": jnp.zeros((), jnp.int32), "from": one, "to": one, "sum": zero, "before": zero}

    def probe(self, out, batch):
        if out.routing is None:
            return {}
        score_BTE = jax.nn.relu(out.routing.score_BTE)
        p_BTE = score_BTE / (jnp.sum(score_BTE, axis=-1, keepdims=True) + EPS)
        unused_BTE = jnp.where(batch.valid_BT[..., None], jnp.log1p(EPS - p_BTE), 0.0)
        begin_BT = begin_chunk(batch, self.chunk)
        used_BT = jnp.mean(-jnp.expm1(sum_since(begin_BT, unused_BTE)), axis=-1)
        end_BT = jnp.pad(begin_BT[:, 1:], ((0, 0), (0, 1)), constant_values=True)
        return {
            "used": jnp.sum(jnp.where(end_BT, used_BT, 0.0)),
            "chunks": jnp.sum(begin_BT, dtype=used_BT.dtype),
        }

    def stats(self, params, m, probes, output, batch):
        return probes

    def total(self, stats, state):
        used = mean_over_layers(stats, lambda seen: seen["used"] / jnp.maximum(seen["chunks"], 1.0))
        factor = self.factor(state)
        state = self.advance(state, jax.lax.stop_gradient(used))
        metrics = {"loss/chunk_sparsity": used, "loss/chunk_sparsity_factor": factor}
        return factor * used, state, metrics

    def factor(self, state):
        """What the weight is multiplied by in the step that follows `state`."""
        share = (jnp.maximum(state["step"] - self.constant_steps, 0) % self.period + 1) / self.period
        return state["from"] + (state["to"] - state["from"]) * share

    def advance(self, state, used):
        """The state after a step whose mean P was `used`."""
        step = state["step"] + 1
        counted = step - self.constant_steps
        total = jnp.where(counted > 0, state["sum"] + used, 0.0)
        due = (counted > 0) & (counted % self.period == 0)
        mean = total / self.period
        ratio = mean / jnp.where(state["before"] > 0, state["before"], 1.0)
        ratio = jnp.where(ratio > 1, jnp.maximum(ratio, self.growth), ratio)
        to = jnp.where(counted > self.period, jnp.minimum(state["to"] * ratio, self.max_factor), state["to"])

        def at_end(new, old):
            return jnp.where(due, new, old).astype(old.dtype)

        return {
            "step": step,
            "from": at_end(state["to"], state["from"]),
            "to": at_end(to, state["to"]),
            "sum": at_end(0.0, total),
            "before": at_end(mean, state["before"]),
        }


def begin_chunk(batch, length: int):
    """bool[B, T]: tokens that begin a chunk of up to `length` positions of one document in one row."""
    T = batch.valid_BT.shape[1]
    at_BT = jnp.where(batch.valid_BT, jnp.arange(T)[None], -1)
    before_BT = jnp.pad(jax.lax.cummax(at_BT, axis=1)[:, :-1], ((0, 0), (1, 0)), constant_values=-1)

    def differs(x_BT):
        """From what it is at the token before, absent ones left out."""
        return x_BT != jnp.take_along_axis(x_BT, jnp.maximum(before_BT, 0), axis=1)

    new_BT = (before_BT < 0) | differs(batch.seg_BT) | differs(batch.pos_BT // length)
    return batch.valid_BT & new_BT


def sum_since(begin_BT, x_BTE):
    """Sum of x from the last token that begins a chunk up to each token."""

    def join(a, b):
        return a[0] | b[0], jnp.where(b[0], b[1], a[1] + b[1])

    return jax.lax.associative_scan(join, (begin_BT[..., None], x_BTE), axis=1)[1]
