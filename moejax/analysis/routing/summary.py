"""Every figure of a trace at once, each beside what it would be without structure."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from moejax.analysis.routing import balance, sparsity
from moejax.analysis.routing import local_consistency as local
from moejax.analysis.routing import token_identity as identity
from moejax.analysis.routing.change import Change, changes
from moejax.analysis.routing.trace import Layer, RoutingTrace

WINDOWS = (4, 16, 64)  # tokens, of SRP
CHUNKS = (8, 32)  # tokens, of CLS
LOOK_AHEAD = 16  # tokens, of SCH
CACHES = (1, 2, 3, 4)  # sizes of a cache, in experts per token
CACHED_TOKENS = 8192  # that caches are simulated on, whole texts spread over the trace


@dataclasses.dataclass(frozen=True)
class Locality:
    """SRP of one window length, and its references."""

    window: int
    srp: local.Srp
    iid: float  # independent, even routing
    shuffled: float  # the same choices in another order of the tokens


@dataclasses.dataclass(frozen=True)
class Cache:
    """Hit rates of caches of one size, whatever the layer."""

    size: int
    hits: dict[str, float]  # by policy; "static" is SCH of the paper's first version
    iid: float  # size / experts: what a cache of arbitrary experts hits


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a token's id, position and predecessor know of its first choice."""

    token: identity.Lookup
    position: identity.Lookup
    previous: identity.Lookup
    shuffled: identity.Lookup  # of ids that belong to other tokens
    spread_token: float
    spread_position: float
    spread_shuffled: float
    spread_most: float  # of ids with experts of their own


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """BlockFFN's figures; `iid` with the same number of experts per token."""

    token: float
    chunk: dict[int, float]  # by tokens in a chunk
    chunk_iid: dict[int, float]
    reuse: float
    reuse_iid: float


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the scores say; None of it without them in the trace."""

    entropy: float  # nats
    inner_balance: float
    outer_balance: float


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One router."""

    layer: int
    num_experts: int
    slots_per_token: float
    load: list[float]  # share of the slots per expert
    max_violation: float
    load_entropy: float  # nats; log(num_experts) = even
    dropped: float  # share of the choices
    identity: Identity
    locality: list[Locality]
    caches: list[Cache]
    sparsity: Sparsity
    scores: Scores | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Another trace of the same model beside the one that is summarised, per layer."""

    step: int | None
    agreement: list[float]  # of the most frequent expert of each token id
    change: list[Change] | None  # None where the text is another one


@dataclasses.dataclass(frozen=True)
class Summary:
    """All figures of one trace."""

    name: str
    step: int | None
    tokens: int
    texts: int
    layers: list[LayerSummary]
    whole_locality: list[Locality]  # one threshold for the experts of all layers
    whole_caches: list[Cache]  # one cache for the experts of all layers: as in the published tables
    drops_by_place: list  # [L][K][parts], share of the choices; null without any
    choice_information: list[list[float]]  # [L][L] nats, of first choices
    choice_information_shuffled: list[list[float]]
    score_information: list[list[float]] | None  # [L][L] nats, of binned scores
    comparisons: list[Comparison]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON knows; null for what is not a number."""
        return _plain(dataclasses.asdict(self))


def summarise(trace: RoutingTrace, others: Iterable[RoutingTrace] = ()) -> Summary:
    """All figures of `trace`, and how it differs from `others`, such as earlier checkpoints."""
    layers = list(trace.layers())
    whole = _pooled(layers)
    shuffled = [[balance.choice_information(a, b, seed=0) for b in layers] for a in layers]
    binned = None
    if trace.score_LNE is not None and len({layer.num_experts for layer in layers}) == 1:
        binned = [[balance.binned_information(a.score_NE, b.score_NE) for b in layers] for a in layers]
    return Summary(
        name=trace.name,
        step=trace.step,
        tokens=trace.num_tokens,
        texts=trace.num_texts,
        layers=[_layer(layer, trace) for layer in layers],
        whole_locality=_locality(whole, trace),
        whole_caches=_caches(whole, trace),
        drops_by_place=identity.drops_by_place(trace).tolist(),
        choice_information=[[balance.choice_information(a, b) for b in layers] for a in layers],
        choice_information_shuffled=shuffled,
        score_information=binned,
        comparisons=[_compare(trace, other) for other in others],
    )


def _layer(layer: Layer, trace: RoutingTrace) -> LayerSummary:
    load_E = balance.load(layer)
    full_NK = layer.full_NK
    scores = None
    if layer.score_NE is not None:
        entropy, inner = balance.score_entropy(layer.score_NE), balance.inner_balance(layer.score_NE)
        scores = Scores(entropy, inner, balance.outer_balance(layer))
    return LayerSummary(
        layer=layer.index,
        num_experts=layer.num_experts,
        slots_per_token=layer.slots_per_token,
        load=load_E.tolist(),
        max_violation=balance.max_violation(load_E),
        load_entropy=float(-(load_E * np.log(np.maximum(load_E, 1e-20))).sum()),
        dropped=float((full_NK & ~layer.kept_NK).sum() / max(full_NK.sum(), 1)),
        identity=_identity(layer, trace),
        locality=_locality(layer, trace),
        caches=_caches(layer, trace),
        sparsity=_sparsity(layer, trace),
        scores=scores,
    )


def _identity(layer: Layer, trace: RoutingTrace) -> Identity:
    fit_N = trace.text_N % 2 == 0  # tables are made from every second text and tested on the others
    mixed_N = np.random.default_rng(0).permutation(trace.token_N)
    ids = (trace.token_N, trace.pos_N, identity.previous_ids(trace), mixed_N)
    tables = [identity.lookup(id_N, layer.top_N, fit_N, identity.MIN_COUNT) for id_N in ids]
    spreads = [identity.spread(id_N, layer) for id_N in (trace.token_N, trace.pos_N, mixed_N)]
    most = identity.spread_of(layer.num_experts, max(layer.slots_per_token, 1.0))
    return Identity(*tables, *spreads, most)


def _locality(layer: Layer, trace: RoutingTrace) -> list[Locality]:
    found = []
    mixed = dataclasses.replace(layer, expert_NK=local.shuffled(layer.expert_NK))
    for m in WINDOWS:
        count_WE = local.window_counts(layer.mask_NE, trace.text_N, m)
        if len(count_WE):
            mixed_WE = local.window_counts(mixed.mask_NE, trace.text_N, m)
            iid = local.srp_iid(layer.num_experts, layer.slots_per_token, m)
            found.append(Locality(m, local.srp(count_WE, m), iid, local.srp(mixed_WE, m).value))
    return found


def _caches(layer: Layer, trace: RoutingTrace) -> list[Cache]:
    E, texts = layer.num_experts, _spread(trace.texts(), CACHED_TOKENS)
    count_WE = local.window_counts(layer.mask_NE, trace.text_N, LOOK_AHEAD)
    sizes = sorted({min(max(round(times * layer.slots_per_token), 1), E) for times in CACHES})
    found = []
    for size in sizes:
        hits = {p: local.hit_rate(layer.expert_NK, E, texts, size, p, LOOK_AHEAD) for p in local.POLICIES}
        found.append(Cache(size, hits | {"static": local.sch_static(count_WE, size)}, size / E))
    return found


def _spread(texts: Sequence[slice], most_tokens: int) -> list[slice]:
    """Every n-th text, so many that they have about `most_tokens` tokens."""
    tokens = sum(own.stop - own.start for own in texts)
    return list(texts[:: math.ceil(tokens / most_tokens)])


def _sparsity(layer: Layer, trace: RoutingTrace) -> Sparsity:
    mask_NE, E, slots = layer.mask_NE, layer.num_experts, layer.slots_per_token
    return Sparsity(
        token=sparsity.token_sparsity(mask_NE),
        chunk={n: sparsity.chunk_sparsity(mask_NE, trace.texts(), n) for n in CHUNKS},
        chunk_iid={n: sparsity.chunk_sparsity_iid(E, slots, n) for n in CHUNKS},
        reuse=sparsity.reuse(mask_NE, trace.text_N),
        reuse_iid=slots / E,
    )


def _pooled(layers: Sequence[Layer]) -> Layer:
    """The experts of all layers as those of one, which a token chooses all at once."""
    first_L = np.cumsum([0, *(layer.num_experts for layer in layers)])
    total = int(first_L[-1])
    expert_NK = np.concatenate(
        [
            np.where(layer.full_NK, layer.expert_NK + first, total)
            for layer, first in zip(layers, first_L[:-1], strict=True)
        ],
        axis=1,
    )
    whole = {
        name: np.concatenate([getattr(layer, name) for layer in layers], 1) for name in ("gate_NK", "kept_NK")
    }
    return Layer(-1, total, expert_NK, **whole, score_NE=None)


def _compare(trace: RoutingTrace, other: RoutingTrace) -> Comparison:
    same = np.array_equal(trace.token_N, other.token_N) and np.array_equal(trace.text_N, other.text_N)
    return Comparison(
        other.step, identity.majority_agreement(other, trace), changes(other, trace) if same else None
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
