"""Small traces by hand."""

import numpy as np

from moejax.analysis.routing.trace import RoutingTrace


def trace(
    expert_LNK, num_experts: int, *, token=None, text=None, gate=None, kept=None, **more
) -> RoutingTrace:
    """A trace with these experts; gates fall from slot to slot, all is kept, one text, unless given."""
    expert_LNK = np.asarray(expert_LNK)
    L, N, K = expert_LNK.shape
    text_N = np.zeros(N, np.int32) if text is None else np.asarray(text, np.int32)
    place_N = np.concatenate([np.arange(n) for n in np.unique(text_N, return_counts=True)[1]]).astype(
        np.int32
    )
    full = expert_LNK < num_experts
    gate = np.where(full, 1 / (1 + np.arange(K)), 0) if gate is None else gate
    return RoutingTrace(
        token_N=np.asarray(np.arange(N) if token is None else token, np.int32),
        pos_N=place_N,
        text_N=text_N,
        row_N=text_N,
        place_N=place_N,
        layer_L=np.arange(L, dtype=np.int32),
        experts_L=np.full(L, num_experts, np.int32),
        expert_LNK=expert_LNK.astype(np.uint8),
        gate_LNK=np.asarray(gate, np.float16),
        kept_LNK=full if kept is None else np.asarray(kept, bool),
        **more,
    )


def one_layer(expert_NK, num_experts: int, **more) -> RoutingTrace:
    """A trace of one layer; `expert_NK` may be a list of experts, one per token."""
    expert_NK = np.asarray(expert_NK)
    return trace(expert_NK.reshape(1, len(expert_NK), -1), num_experts, **more)


def random(seed: int, layers=2, tokens=40, experts=6, slots=2, texts=3) -> RoutingTrace:
    """Distinct random experts, some slots empty, some dropped."""
    rng = np.random.default_rng(seed)
    shape = (layers, tokens)
    expert_LNK = np.argsort(rng.random((*shape, experts)), axis=-1)[..., :slots]
    expert_LNK = np.where(rng.random(expert_LNK.shape) < 0.1, experts, expert_LNK)
    score_LNE = rng.dirichlet(np.ones(experts), shape).astype(np.float16)
    return trace(
        expert_LNK,
        experts,
        token=rng.integers(0, 9, tokens),
        text=np.sort(rng.integers(0, texts, tokens)),
        kept=(expert_LNK < experts) & (rng.random(expert_LNK.shape) < 0.8),
        score_LNE=score_LNE,
    )
