"""What routers look at, when they make up their mind, and who is dropped.

OpenMoE: An Early Effort on Open Mixture-of-Experts Language Models (Xue et al. 2024, arXiv 2402.01739) finds
that experts are chosen by the token's identity and hardly by its context; that the choice is fixed early in
training; and that with limited capacity the tokens late in a group are dropped, more so on text that is
unlike what was trained on.

A model with the paper's capacity (1.25 T / E slots per expert in a row of T tokens) learns all domains of
text but the last, from several seeds. A table from token ids to experts, made from every second text, gives
the first choices in the others. Training is repeated from the same seeds up to earlier steps; as the
learning rate is constant, these are the earlier states of the same training. Drops are those of capacity 2,
which the paper evaluates with, by the eighth of the row that a token is in.

Differs from the paper: a few million parameters and tokens; a group is one row; AdamW with a constant
learning rate; plain next-token prediction; the drops of a remedy that the paper only proposes (some of the
foreign text in training) are measured in the full size.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from configs import openmoe as recipes
from moejax.analysis.routing import token_identity as identity
from moejax.analysis.routing.trace import Layer, RoutingTrace
from moejax.attention.gqa import Gqa
from moejax.bench import domains, held_out, replicas
from moejax.bench.domains import Domains
from moejax.bench.moe_variants import with_moe
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.report import Bar, Measure, mean, paired, paired_ratio
from moejax.config import OptimConfig, Run, TrainConfig
from moejax.ffn.moe import Moe
from moejax.serving.model import Model

VOCAB = 1024
PARTS = 8  # of a row
EARLY = 0.3  # of training
CAPACITY = 2.0  # of evaluation
MIXED = 0.05  # share of the foreign text in training, as a remedy

CLAIM = (
    "ids tell at least twice as much about a token's first expert as positions do; at 30% of training 80% of "
    "the tokens have ids with the same most frequent expert as at the end; at capacity 2 more is dropped in "
    "the last eighth of a row than in the first, and more of foreign text than of text like that of training"
)
IDENTITY = "what is known of the expert: from ids, above shuffled ones / from positions"
AGREEMENT = f"tokens whose id has its final expert, at {EARLY:.0%} of training"
GROWTH = "drops: last eighth of a row minus first"
FOREIGN = "drops: foreign text minus text like that of training"
BARS = (
    Bar(IDENTITY, at_least=2.0),
    Bar(AGREEMENT, at_least=0.8),
    Bar(GROWTH, at_least=0.0),
    Bar(FOREIGN, at_least=0.0),
)


LATE = (
    "the paper looks back over 200 to 1000 billion tokens, this over about a million at a constant rate: how "
    "far routers still move is told by the shares at later stops"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is trained and measured."""

    seeds: int = 3
    steps: int = 800
    batch_rows: int = 4
    seq_len: int = 256
    width: int = 64
    num_experts: int = 16
    layers: int = 4  # every second one has experts
    learning_rate: float = 2e-3
    # Of training, where the choice is compared with the final one.
    stops: tuple[float, ...] = (EARLY, 0.6, 0.9)
    rows_each: int = 48  # held-out rows of a domain
    most_bytes: int = 1 << 20  # of a domain
    min_count: int = identity.MIN_COUNT  # occurrences of an id that counts
    remedy: bool = False  # also train with a little of the foreign text


def run_of(cfg: Settings, share: float = 1.0) -> Run:
    """The paper's model at this size; `share` of its training, whose rate does not depend on the share."""
    heads = cfg.width // 16
    attn = Gqa(num_heads=heads, num_kv_heads=heads, head_width=16)
    return Run(
        name="openmoe_bench",
        model=recipes.model(VOCAB, attn, cfg.num_experts, hidden=2 * cfg.width, layers=cfg.layers),
        train=TrainConfig(
            steps=max(1, round(share * cfg.steps)),
            batch_rows=cfg.batch_rows,
            seq_len=cfg.seq_len,
            losses=recipes.LOSSES,
            optim=OptimConfig(cfg.learning_rate, warmup_steps=cfg.steps // 20, schedule="constant"),
        ),
    )


def trained_without(text: Domains, name: str, share: float = 0.0) -> Domains:
    """The text with only `share` of what is trained on from domain `name`; held-out rows stay."""
    foreign_N = text.train_label_N == text.names.index(name)
    others = int((~foreign_N).sum())
    some = round(others * share / (1 - share))
    taken_N = ~foreign_N | (foreign_N & (np.cumsum(foreign_N) <= some))
    return dataclasses.replace(
        text,
        train=text.train.where(taken_N),
        train_label_N=text.train_label_N[taken_N],
        fingerprint=f"{text.fingerprint}, {share:g} of it {name}",
    )


def with_experts(model: Model, change: Callable[[Moe], Moe]) -> Model:
    """The same parameters; their mixtures of experts work in another way."""
    return dataclasses.replace(model, cfg=with_moe(model.cfg, change))


def limited(ffn: Moe) -> Moe:
    """With the room that experts have in evaluation."""
    return dataclasses.replace(ffn, selector=dataclasses.replace(ffn.selector, factor=CAPACITY))


def known(layer: Layer, trace: RoutingTrace, min_count: int) -> dict[str, identity.Lookup]:
    """What a table from each of these tells about the first expert."""
    fit_N = trace.text_N % 2 == 0
    ids = {
        "id": trace.token_N,
        "previous id": identity.previous_ids(trace),
        "position": trace.pos_N,
        "domain": trace.label_N,
        "shuffled id": np.random.default_rng(0).permutation(trace.token_N),
    }
    return {name: identity.lookup(id_N, layer.top_N, fit_N, min_count) for name, id_N in ids.items()}


def routing(model: Model, text: Domains, names: Sequence[str], rows_each: int) -> RoutingTrace:
    """Of held-out text of these domains, at the capacity of evaluation."""
    some = dataclasses.replace(text, held_out={name: text.held_out[name] for name in names})
    return held_out.trace(with_experts(model, limited), some, rows_each)


def drops(trace: RoutingTrace) -> np.ndarray:
    """Dropped share of the choices by part of the row, mean over layers and choices."""
    return identity.drops_by_place(trace, PARTS).mean(axis=(0, 1))


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one seed gave."""

    lookups: list[dict[str, identity.Lookup]]  # by layer
    spread: dict[str, float]  # of ids and positions, mean over layers
    agreement: list[float]  # by stop
    own: np.ndarray  # drops by part of the row, of text like that of training
    foreign: np.ndarray
    price: float  # nats per token that capacity costs on held-out text


def measure(cfg: Settings, inputs: Inputs) -> Findings:
    """Train, and look at what the routers do."""
    text = domains.prepare(inputs, VOCAB, cfg.seq_len, cfg.most_bytes)
    foreign = text.names[-1]
    known_text = trained_without(text, foreign)
    stops = [train(cfg, known_text, inputs, share) for share in (*cfg.stops, 1.0)]
    seen = [look(cfg, known_text, *models) for models in zip(*stops, strict=True)]
    measures = [*_of_identity(seen), *_of_stops(cfg, seen), *_of_drops(seen)]
    if cfg.remedy:
        mixed = trained_without(text, foreign, MIXED)
        remedied = train(cfg, mixed, inputs)
        fewer = [float(drops(routing(one, mixed, [foreign], cfg.rows_each)).mean()) for one in remedied]
        name = f"drops of foreign text: with {MIXED:.0%} of it in training minus without"
        measures.append(paired(name, fewer, [float(one.foreign.mean()) for one in seen], "share", "lower"))
    notes = (*text.notes, f"foreign text is {foreign}; drops are at capacity {CAPACITY:g}", LATE)
    return Findings(tuple(measures), text.settings, notes, (_drop_chart(seen), _agreement_chart(cfg, seen)))


def train(cfg: Settings, text: Domains, inputs: Inputs, share: float = 1.0) -> list[Model]:
    """A model per seed, after `share` of the training."""
    return [one.model for one in replicas.train(run_of(cfg, share), text, range(cfg.seeds), inputs.cache)]


def look(cfg: Settings, text: Domains, *models: Model) -> Seen:
    """At a trained model, the last one, and at its earlier states."""
    *own, foreign = text.names
    *earlier, trace = (routing(model, text, own, cfg.rows_each) for model in models)
    agreement = [identity.majority_agreement(one, trace, cfg.min_count) for one in earlier]
    nats = lambda change: held_out.nats(
        with_experts(models[-1], change), text.held_out[own[0]], cfg.rows_each
    )
    return Seen(
        lookups=[known(layer, trace, cfg.min_count) for layer in trace.layers()],
        spread={
            name: float(np.mean([identity.spread(id_N, layer, cfg.min_count) for layer in trace.layers()]))
            for name, id_N in (("id", trace.token_N), ("position", trace.pos_N))
        },
        agreement=[float(np.mean(layers)) for layers in agreement],
        own=drops(trace),
        foreign=drops(routing(models[-1], text, [foreign], cfg.rows_each)),
        price=nats(limited) - nats(lambda ffn: ffn.causal_form()),
    )


def _of_identity(seen: Sequence[Seen]) -> list[Measure]:
    told = {
        name: [float(np.mean([layer[name].uncertainty_coefficient for layer in one.lookups])) for one in seen]
        for name in seen[0].lookups[0]
    }
    # A table of many ids finds something in pure chance; positions, which are fewer, keep theirs.
    above = [max(a - b, 1e-6) for a, b in zip(told["id"], told["shuffled id"], strict=True)]
    spread = {name: [one.spread[name] for one in seen] for name in seen[0].spread}
    accuracy, common = (
        [[float(getattr(layer["id"], what)) for layer in one.lookups] for one in seen]
        for what in ("accuracy", "baseline")
    )
    measures = [
        paired_ratio(IDENTITY, above, told["position"], "higher"),
        *(
            mean(f"share of the expert that is known from the {name}", each, "share")
            for name, each in told.items()
        ),
        *(
            mean(f"deviation over experts of the shares of one {name}", each, "share")
            for name, each in spread.items()
        ),
    ]
    for layer, right in enumerate(zip(*accuracy, strict=True), start=1):
        measures.append(
            mean(f"experts that a table of ids predicts, router {layer}", right, "share", "higher")
        )
    return [
        *measures,
        mean("experts that the most used one predicts", [float(np.mean(x)) for x in common], "share"),
    ]


def _of_stops(cfg: Settings, seen: Sequence[Seen]) -> list[Measure]:
    names = [f"tokens whose id has its final expert, at {share:.0%} of training" for share in cfg.stops]
    columns = zip(*(one.agreement for one in seen), strict=True)
    return [mean(name, each, "share", "higher") for name, each in zip(names, columns, strict=True)]


def _of_drops(seen: Sequence[Seen]) -> list[Measure]:
    own, foreign = ([[float(x) for x in getattr(one, what)] for one in seen] for what in ("own", "foreign"))
    average = lambda each: [float(np.mean(parts)) for parts in each]
    return [
        paired(GROWTH, [parts[-1] for parts in own], [parts[0] for parts in own], "share"),
        paired(FOREIGN, average(foreign), average(own), "share"),
        mean("drops of text like that of training", average(own), "share", "lower"),
        mean("drops of foreign text", average(foreign), "share", "lower"),
        mean("held-out loss that capacity costs", [one.price for one in seen], "nats/token", "lower"),
    ]


def _drop_chart(seen: Sequence[Seen]) -> Chart:
    places = [(part + 0.5) / PARTS for part in range(PARTS)]
    curves = (
        Curve.of_seeds("like training", places, [one.own for one in seen]),
        Curve.of_seeds("foreign", places, [one.foreign for one in seen]),
    )
    return Chart(
        f"Dropped choices at capacity {CAPACITY:g}", "place in the row", "share of the choices", curves
    )


def _agreement_chart(cfg: Settings, seen: Sequence[Seen]) -> Chart:
    curve = Curve.of_seeds("all routers", [*cfg.stops, 1.0], [[*one.agreement, 1.0] for one in seen])
    return Chart("Tokens whose id has its final expert", "share of training", "share of the tokens", (curve,))


SIZES = {
    "tiny": Settings(
        steps=20, batch_rows=8, seq_len=64, width=32, num_experts=4, layers=2, stops=(EARLY,), rows_each=8,
        most_bytes=1 << 17, min_count=4,
    ),
    "default": Settings(),
    "full": Settings(
        steps=3000, batch_rows=8, stops=(0.05, 0.1, 0.2, EARLY, 0.6, 0.9), rows_each=96, remedy=True,
    ),
    "gpu": Settings(
        seeds=8, steps=20_000, batch_rows=32, width=512, num_experts=32, layers=12, rows_each=96,
        remedy=True,
    ),
}  # fmt: skip
PAPER = Paper(
    title="OpenMoE: An Early Effort on Open MoE Language Models (Xue et al. 2024, arXiv 2402.01739)",
    claim=CLAIM,
    baseline="positions; the end of training; the first eighth of a row; text like that of training",
    bars=BARS,
    sizes=SIZES,
    measure=measure,
)
