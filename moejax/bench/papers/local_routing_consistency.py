"""Which models suit a small cache of experts: consistency of routing, and what balancing does to it.

Not All Models Suit Expert Offloading: On Local Routing Consistency of Mixture-of-Expert Models (Liang et al.
2025, arXiv 2505.16056): consecutive tokens reuse experts (SRP, segment routing best performance), the more so
the less the load is balanced; a cache that knows the next 16 tokens (SCH) hits nearly as often as one that
knows everything (Belady), and more often than those that look back.

One small model per balance coefficient and seed learns text of several domains; its routing of held-out text
is measured layer by layer. What SRP is of the same choices in another order of the tokens is no locality but
imbalance, so the difference is given too. The full size also varies experts per token and adds a shared one.

Differs from the paper: four layers of 16 narrow experts instead of models of billions; rates of each layer's
own cache instead of one for all layers; windows of 16 tokens only; Spearman's correlation.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from configs import domains as recipes
from moejax.analysis.routing import local_consistency as local
from moejax.analysis.routing import specialisation
from moejax.analysis.routing.trace import Layer, RoutingTrace
from moejax.bench import domains, held_out, replicas
from moejax.bench.moe_variants import with_moe
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.report import Bar, Measure, mean, paired
from moejax.config import Run
from moejax.ffn.dense import Dense
from moejax.losses.balance import GlobalBalance
from moejax.routers.select.top_k import TopK

WINDOW = 16  # tokens, of SRP and of SCH's look-ahead
BALANCED, FREE, STRONG = "balance 0.01", "balance 0", "balance 0.1"
POLICIES = tuple(local.POLICIES)

CLAIM = (
    "tokens in a row reuse experts more without a balance loss than with 0.01, and then more than with 0.1; "
    "balanced models do so more than shuffled tokens in every layer; SCH hits more than LRU and LFU, at most "
    "what Belady does, and within 10% of that where a cache holds 2 to 3 times a token's experts"
)
FREE_GAIN = f"SRP: {FREE} minus {BALANCED}"
BALANCED_GAIN = f"SRP: {BALANCED} minus {STRONG}"
LOCALITY = f"{BALANCED}: SRP minus that of shuffled tokens, smallest of the layers"
SCH_LEAD = f"{BALANCED}: SCH minus the better of LRU and LFU, smallest of layers and sizes"
SCH_MOST = f"{BALANCED}: SCH / Belady, largest of layers and sizes"
SCH_LEAST = f"{BALANCED}: SCH / Belady at 2 and 3 times a token's experts, smallest of layers"
BARS = (
    Bar(FREE_GAIN, at_least=0.0),
    Bar(BALANCED_GAIN, at_least=0.0),
    Bar(LOCALITY, at_least=0.0),
    Bar(SCH_LEAD, at_least=0.0),
    Bar(SCH_MOST, at_most=1.01),
    Bar(SCH_LEAST, at_least=0.9),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is trained and measured."""

    recipe: str = "config"  # function of configs/domains.py
    steps: int = 400
    seeds: int = 3
    rows_each: int = 96  # held-out rows of a domain
    most_bytes: int = 1 << 20  # of a domain
    cached_texts: int = 96  # that caches are simulated on
    sizes: tuple[float, ...] = (1, 1.5, 2, 3, 4, 6)  # of a cache, in experts of a token
    more_arms: bool = False  # other numbers of experts per token, and a shared expert


@dataclasses.dataclass(frozen=True)
class Consistency:
    """Of one trained model; lists go by layer."""

    held_out: float  # nats per token
    srp: list[float]
    shuffled: list[float]
    iid: list[float]  # independent, even routing
    load_std: float  # of the share of tokens that an expert takes, over all experts


def with_balance(run: Run, weight: float) -> Run:
    """The run with another coefficient of its balance loss."""
    losses = [
        dataclasses.replace(loss, weight=weight) if isinstance(loss, GlobalBalance) else loss
        for loss in run.train.losses
    ]
    return dataclasses.replace(run, train=dataclasses.replace(run.train, losses=tuple(losses)))


def with_experts(run: Run, **changes) -> Run:
    """The run with other mixtures of experts."""
    return dataclasses.replace(
        run, model=with_moe(run.model, lambda ffn: dataclasses.replace(ffn, **changes))
    )


def arms(cfg: Settings) -> dict[str, Run]:
    """Runs that differ in one thing each."""
    base = getattr(recipes, cfg.recipe)()
    base = dataclasses.replace(base, train=dataclasses.replace(base.train, steps=cfg.steps))
    found = {BALANCED: base, FREE: with_balance(base, 0.0), STRONG: with_balance(base, 0.1)}
    if cfg.more_arms:
        moe = base.model.groups[0].blocks[0].ffn
        shared = {"num_experts": moe.num_experts - 1, "shared_expert": Dense(moe.hidden)}
        found |= {
            "1 expert per token": with_experts(base, selector=TopK(1)),
            "4 experts per token": with_experts(base, selector=TopK(4)),
            "3 experts per token and a shared one": with_experts(base, selector=TopK(3), **shared),
        }
    return found


def consistency(trace: RoutingTrace, loss: float) -> Consistency:
    """Of the routing of held-out text."""
    layers = list(trace.layers())
    mixed = [dataclasses.replace(layer, expert_NK=local.shuffled(layer.expert_NK)) for layer in layers]
    frequency = [layer.mask_NE.mean(axis=0) for layer in layers]
    return Consistency(
        loss,
        [layer_srp(layer, trace.text_N) for layer in layers],
        [layer_srp(layer, trace.text_N) for layer in mixed],
        [local.srp_iid(layer.num_experts, layer.slots_per_token, WINDOW) for layer in layers],
        float(np.std(np.concatenate(frequency))),
    )


def layer_srp(layer: Layer, text_N: np.ndarray) -> float:
    """Of one layer, with one threshold for all its experts."""
    return local.srp(local.window_counts(layer.mask_NE, text_N, WINDOW), WINDOW).value


def hit_rates(trace: RoutingTrace, sizes: Sequence[int], most_texts: int) -> np.ndarray:
    """Hit rates [layers, sizes, policies] of a cache per layer, on evenly spread texts."""
    texts = trace.texts()
    texts = texts[:: -(-len(texts) // most_texts)]
    return np.array(
        [
            [
                [local.hit_rate(x.expert_NK, x.num_experts, texts, size, p, WINDOW) for p in POLICIES]
                for size in sizes
            ]
            for x in trace.layers()
        ]
    )


def correlations(trace: RoutingTrace) -> tuple[float, float]:
    """Of the SRP of single experts with what they specialise in: (domains, words)."""
    srp, by_domain, by_word = (
        np.concatenate([of(layer) for layer in trace.layers()])
        for of in (
            lambda layer: specialisation.expert_srp(layer, trace.text_N, WINDOW),
            lambda layer: specialisation.domain_specialisation(layer, trace.label_N, len(trace.labels)),
            lambda layer: specialisation.vocabulary_specialisation(layer, trace.token_N),
        )
    )
    found = (stats.spearmanr(srp, other, nan_policy="omit").statistic for other in (by_domain, by_word))
    return tuple(float(value) for value in found)


def measure(cfg: Settings, inputs: Inputs) -> Findings:
    """Every arm from every seed."""
    text = domains.prepare(inputs, recipes.VOCAB, recipes.SEQ_LEN, cfg.most_bytes)
    found: dict[str, list[Consistency]] = {}
    traces: list[RoutingTrace] = []
    for name, run in arms(cfg).items():
        trained = replicas.train(run, text, range(cfg.seeds), inputs.cache)
        routed = [held_out.trace(one.model, text, cfg.rows_each) for one in trained]
        found[name] = [consistency(t, one.held_out_loss) for t, one in zip(routed, trained, strict=True)]
        traces = traces or routed  # of the balanced models, which come first
    slots = traces[0].num_slots
    sizes = cache_sizes(cfg.sizes, slots, int(traces[0].experts_L[0]))
    hits = np.array([hit_rates(trace, sizes, cfg.cached_texts) for trace in traces])
    return Findings(
        measures=(
            *_of_balance(found),
            *_of_caches(hits, sizes, slots),
            *_of_experts(traces),
            *_of_arms(found),
        ),
        settings=text.settings,
        notes=(
            *text.notes,
            "where tokens take another share of the experts, compare not SRP but what it has above that of "
            "shuffled tokens",
        ),
        charts=(_hit_chart(hits, sizes), _srp_chart(found)),
    )


def cache_sizes(times: Sequence[float], slots: int, num_experts: int) -> list[int]:
    """Sizes in experts, of those that hold fewer than all."""
    return sorted({size for size in (round(x * slots) for x in times) if slots <= size < num_experts})


def _of_balance(found: Mapping[str, list[Consistency]]) -> list[Measure]:
    srp = {name: [float(np.mean(one.srp)) for one in each] for name, each in found.items()}
    above = [float(np.min(np.subtract(one.srp, one.shuffled))) for one in found[BALANCED]]
    return [
        paired(FREE_GAIN, srp[FREE], srp[BALANCED], "share", "higher"),
        paired(BALANCED_GAIN, srp[BALANCED], srp[STRONG], "share", "higher"),
        mean(LOCALITY, above, "share", "higher"),
    ]


def _of_caches(hits_RLSP: np.ndarray, sizes: Sequence[int], slots: int) -> list[Measure]:
    rate = {policy: hits_RLSP[..., i] for i, policy in enumerate(POLICIES)}
    lead_RLS = rate["sch"] - np.maximum(rate["lru"], rate["lfu"])
    share_RLS = rate["sch"] / rate["belady"]
    double = [i for i, size in enumerate(sizes) if 2 * slots <= size <= 3 * slots]
    measures = [
        mean(SCH_LEAD, lead_RLS.min(axis=(1, 2)), "share", "higher"),
        mean(SCH_MOST, share_RLS.max(axis=(1, 2)), "x"),
        mean(SCH_LEAST, share_RLS[:, :, double].min(axis=(1, 2)), "x", "higher"),
    ]
    for policy, rate_RLS in rate.items():
        for i in double:
            name = f"{BALANCED}: hit rate of {policy} with {sizes[i]} experts"
            measures.append(mean(name, rate_RLS[:, :, i].mean(axis=1), "share", "higher"))
    return measures


def _of_experts(traces: Sequence[RoutingTrace]) -> list[Measure]:
    by_domain, by_word = zip(*map(correlations, traces), strict=True)
    return [
        mean(f"{BALANCED}: correlation of an expert's SRP with its domains", by_domain, "rho"),
        mean(f"{BALANCED}: correlation of an expert's SRP with its words", by_word, "rho"),
    ]


def _of_arms(found: Mapping[str, list[Consistency]]) -> list[Measure]:
    """What each model is like."""
    measures = []
    for name, each in found.items():
        above = [float(np.mean(np.subtract(one.srp, one.shuffled))) for one in each]
        by_chance = Measure(
            f"{name}: SRP of independent, even routing", float(np.mean(each[0].iid)), "share", "neither"
        )
        measures += [
            mean(f"{name}: SRP", [float(np.mean(one.srp)) for one in each], "share"),
            mean(f"{name}: SRP minus that of shuffled tokens", above, "share"),
            by_chance,
            mean(f"{name}: deviation of the experts' load", [one.load_std for one in each], "share", "lower"),
            mean(f"{name}: held-out loss", [one.held_out for one in each], "nats/token", "lower"),
        ]
    return measures


def _hit_chart(hits_RLSP: np.ndarray, sizes: Sequence[int]) -> Chart:
    """Mean over layers, with the smallest and largest seed."""
    by_seed_RSP = hits_RLSP.mean(axis=1)
    curves = tuple(Curve.of_seeds(policy, sizes, by_seed_RSP[:, :, i]) for i, policy in enumerate(POLICIES))
    return Chart("Hit rate of a cache per layer", "experts in the cache", "hit rate", curves)


def _srp_chart(found: Mapping[str, list[Consistency]]) -> Chart:
    curves = []
    for name in (FREE, BALANCED, STRONG):
        layers = range(len(found[name][0].srp))
        curves.append(Curve.of_seeds(name, layers, np.array([one.srp for one in found[name]])))
        curves.append(
            Curve.of_seeds(
                f"{name}, shuffled tokens", layers, np.array([one.shuffled for one in found[name]])
            )
        )
    return Chart("Segment routing performance, windows of 16", "layer", "SRP", tuple(curves))


PAPER = Paper(
    title="Not All Models Suit Expert Offloading (Liang et al. 2025, arXiv 2505.16056)",
    claim=CLAIM,
    baseline="another balance coefficient; the same choices of shuffled tokens; LRU, LFU and Belady",
    bars=BARS,
    sizes={
        "tiny": Settings(recipe="tiny", steps=20, seeds=3, rows_each=16, most_bytes=1 << 17, cached_texts=8),
        "default": Settings(),
        "full": Settings(steps=1800, rows_each=192, cached_texts=192, more_arms=True),
        "gpu": Settings(steps=20_000, seeds=8, rows_each=192, cached_texts=192, more_arms=True),
    },
    measure=measure,
)
