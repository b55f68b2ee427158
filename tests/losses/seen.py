"""Made-up routings for tests of losses, and a loss's value from them."""

import types

import jax
import numpy as np

from moejax.seams import Batch, BlockOut, Routing


def routing(expert_BTK, score_BTE, logit_BTE=None) -> Routing:
    expert_BTK, score_BTE = np.asarray(expert_BTK, np.int32), np.asarray(score_BTE, np.float32)
    logit_BTE = score_BTE if logit_BTE is None else np.asarray(logit_BTE, np.float32)
    gate_BTK = np.ones(expert_BTK.shape, np.float32)
    return Routing(expert_BTK, gate_BTK, expert_BTK < score_BTE.shape[-1], score_BTE, logit_BTE)


def batch(valid_BT) -> Batch:
    valid_BT = np.asarray(valid_BT, bool)
    zero_BT = np.zeros(valid_BT.shape, np.int32)
    return Batch(zero_BT, zero_BT, zero_BT, valid_BT, zero_BT, valid_BT.astype(np.float32))


def random(seed: int, B: int = 4, T: int = 5, E: int = 6, K: int = 2, saturated: bool = False):
    """(two layers' Routing, Batch) with absent tokens."""
    rng = np.random.default_rng(seed)
    valid_BT = rng.random((B, T)) < 0.7
    valid_BT[0, 0] = True
    layers = []
    for _ in range(2):
        logit_BTE = rng.standard_normal((B, T, E)) * (100 if saturated else 1)
        expert_BTK = np.where(valid_BT[..., None], np.argsort(logit_BTE)[..., -K:], E)
        layers.append(routing(expert_BTK, 1 / (1 + np.exp(-np.clip(logit_BTE, -60, 60))), logit_BTE))
    return layers, batch(valid_BT)


def stats(loss, layers, batch: Batch):
    """What the loss keeps of one micro-batch that passed these layers."""
    nothing = types.SimpleNamespace()
    probes = [loss.probe(BlockOut(None, None, layer), batch) for layer in layers]
    stacked = jax.tree.map(lambda *leaf: np.stack(leaf), *probes)
    return loss.stats(None, None, ((stacked,),), nothing, batch)


def value(loss, *micro_batches):
    """The loss over micro-batches, each a (layers, Batch)."""
    sums = jax.tree.map(lambda *leaf: sum(leaf), *(stats(loss, *micro) for micro in micro_batches))
    return loss.total(sums, ())[0]
