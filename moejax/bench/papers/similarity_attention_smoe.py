"""Improving Routing in Sparse Mixture of Experts with Graph of Tokens (Nguyen et al.
2025, arXiv 2505.00792).

Claim: where a token follows the router rows of tokens that it attends to, or resembles, fewer tokens change
their experts late in training, at no cost in perplexity. Any smoothing of rows may do that, so controls
smooth without looking at the text: over the last few tokens, and by a random map of positions, both as wide
as the attention map (equal mean entropy of its rows). A method beats a control that has more changes or a
higher perplexity, and is not better in the other; the claim asks that no control keeps up.

Measured from equal seeds, data and steps: changes of held-out routing between every twentieth of the training
and its end; perplexity, also with 5% of the input tokens replaced; entropy of the choice before and after
smoothing; load.

Differs from the paper: written from its abstract, so there is no figure of it to compare; small models. The
routers' worked numbers are in tests/routers/score/test_token_graph.py, those of the changes in
tests/analysis/routing/test_change.py.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from moejax.analysis.routing.balance import max_violation
from moejax.analysis.routing.change import change
from moejax.attention.gqa import Gqa
from moejax.bench import domains, held_out, replicas, smoothing
from moejax.bench.domains import Domains
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.replicas import Trained, Watch
from moejax.bench.report import Bar, Measure, mean, paired_ratio
from moejax.config import Run
from moejax.losses.balance import GlobalBalance
from moejax.losses.next_token import NextToken
from moejax.model import forward as decoder
from moejax.routers.score.linear import Linear
from moejax.routers.score.token_graph import AttentionAware, SimilarityAware
from moejax.seams import Batch

CLAIM = (
    "routers over a graph of tokens change the experts of fewer tokens late in training than a linear one, "
    "at a perplexity at most 1% higher, and no smoothing that ignores the text does as well in both"
)
METHODS, CONTROLS = ("attention", "similarity"), ("random map", "recent tokens")
CHANGES = "tokens that change experts, {} / linear"
PERPLEXITY = "perplexity, {} / linear"
UNBEATEN = "controls that keep up with {}"
BARS = tuple(
    bar
    for method in METHODS
    for bar in (
        Bar(CHANGES.format(method), at_most=1.0),
        Bar(PERPLEXITY.format(method), at_most=1.01),
        Bar(UNBEATEN.format(method), at_most=0.0),
    )
)
ARMS = {
    "linear": Linear(),
    "attention": AttentionAware(),
    "similarity": SimilarityAware(),
    "half attention": AttentionAware(share=0.5),
}
SET = 0  # of the kinds of change
PARTS = 20  # of the training, at whose ends the routing is noted
NOISE = 0.05  # of the input tokens are replaced


SOFTER = (
    "late in training means after ten times as many steps in the paper; where smoothing changes more tokens "
    "here, compare the entropies: in softer rows a smaller step of a logit changes the choice"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long to train what."""

    seeds: int = 3
    steps: int = 400  # a multiple of PARTS
    layers: int = 3
    heads: int = 4
    head_width: int = 16
    experts: int = 8
    hidden: int = 64
    vocab: int = 512
    seq_len: int = 64
    batch_rows: int = 16
    rows: int = 64  # held-out, whose routing is compared
    most_bytes: int = 1 << 20  # of every domain of text


def measure(cfg: Settings, inputs: Inputs) -> Findings:
    """Train the methods, then controls that are as wide as the attention map, and compare."""
    text = domains.prepare(inputs, cfg.vocab, cfg.seq_len, cfg.most_bytes)
    batch = held_out.whole_rows(text, cfg.rows)
    found = {name: train(cfg, scorer, text, batch, inputs) for name, scorer in ARMS.items()}
    seen = {name: [look(one, batch) for one in trained] for name, trained in found.items()}
    width = float(np.mean([one["map"] for one in seen["attention"]]))
    for name, scorer in zip(CONTROLS, smoothing.matched(width, cfg.seq_len), strict=True):
        found[name] = train(cfg, scorer, text, batch, inputs)
        seen[name] = [look(one, batch) for one in found[name]]
    changed = {name: np.stack([changes(one, cfg.experts) for one in each]) for name, each in found.items()}
    settings = {
        "controls": [
            repr(each[0].model.cfg.groups[0].blocks[0].ffn.scorer) for each in map(found.get, CONTROLS)
        ]
    }
    return Findings(
        measures=(*claims(found, changed), *figures(seen, changed)),
        settings=text.settings | settings | {"entropy of attention's rows": f"{width:.3f} nats"},
        notes=(*text.notes, SOFTER),
        charts=(chart(changed),),
    )


def train(cfg: Settings, scorer, text: Domains, batch: Batch, inputs: Inputs) -> list[Trained]:
    """All seeds of one arm, with notes of the routing of `batch`."""
    run = run_of(cfg, scorer)
    see = functools.partial(experts, m=run.model, batch=batch)
    watch = Watch(f"experts of {cfg.rows} whole rows", cfg.steps // PARTS, see)
    return replicas.train(run, text, range(cfg.seeds), inputs.cache, watch)


def run_of(cfg: Settings, scorer) -> Run:
    """The training run of one arm."""
    attn = Gqa(num_heads=cfg.heads, num_kv_heads=max(cfg.heads // 2, 1), head_width=cfg.head_width)
    ffn = dataclasses.replace(base.moe(cfg.experts, cfg.hidden, 2), scorer=scorer)
    train = dataclasses.replace(
        base.tiny().train,
        steps=cfg.steps,
        batch_rows=cfg.batch_rows,
        seq_len=cfg.seq_len,
        losses=(NextToken(), GlobalBalance(weight=1e-2)),
    )
    model = base.mixtral(cfg.vocab, attn, ffn, layers=cfg.layers)
    return Run(name="similarity_attention_smoe_bench", model=model, train=train)


def experts(params, *, m, batch: Batch) -> dict[str, jax.Array]:
    """What every token of the batch chooses, [L, B, T, K]."""
    output = decoder.forward(params, m, batch, probe=lambda out, batch: out.routing.expert_BTK)
    return {"expert": output.probes[0][0].astype(jnp.uint8)}


def changes(trained: Trained, num_experts: int) -> np.ndarray:
    """f64[3, PARTS - 1]: changes of set, first choice and overlap from a note to the last; mean of layers."""
    note_SLBTK = trained.seen["expert"]
    note_SLNK = note_SLBTK.reshape(*note_SLBTK.shape[:2], -1, note_SLBTK.shape[-1])
    each_SLC = [
        [dataclasses.astuple(change(a, b, num_experts)) for a, b in zip(note_LNK, note_SLNK[-1], strict=True)]
        for note_LNK in note_SLNK[:-1]
    ]
    return np.mean(each_SLC, axis=1).T


def late(changed_RCS: np.ndarray, kind: int) -> np.ndarray:
    """f64[R]: mean over the last third of the training; of each seed."""
    return changed_RCS[:, kind, -(PARTS // 3) :].mean(axis=1)


def look(trained: Trained, batch: Batch) -> dict[str, float]:
    """What one model does with a batch, as it is and with some of its tokens replaced."""
    rng, m = np.random.default_rng(0), trained.model.cfg
    other_BT = rng.integers(0, m.vocab, batch.token_BT.shape)
    hit_BT = rng.random(batch.token_BT.shape) < NOISE
    noisy = batch.replace(token_BT=np.where(hit_BT, other_BT, batch.token_BT).astype(np.int32))
    clean, seen, expert_LN = jax.tree.map(np.asarray, _look(trained.model.params, batch, m=m))
    loads = [np.bincount(expert_N, minlength=m.groups[0].blocks[0].ffn.num_experts) for expert_N in expert_LN]
    return {
        "perplexity": math.exp(clean),
        "noisy perplexity": math.exp(_look(trained.model.params, noisy, m=m)[0]),
        "load": float(np.mean([1 + max_violation(load_E / load_E.sum()) for load_E in loads])),
        **{name: float(value) for name, value in seen.items()},
    }


@functools.partial(jax.jit, static_argnames="m")
def _look(params, batch, *, m):
    """(nats per token, mean entropies, [L, N] slots)."""

    def probe(out, batch):
        return {
            "own": smoothing.entropy(jax.nn.softmax(out.routing.logit_BTE)),
            "mixed": smoothing.entropy(out.routing.score_BTE),
            "map": smoothing.row_entropy(out.mixing),
            "expert": out.routing.expert_BTK,
        }

    output = decoder.forward(params, m, batch, probe=probe)
    seen = dict(output.probes[0][0])
    expert_LN = seen.pop("expert").reshape(m.num_layers, -1)
    sums = NextToken().stats(params, m, (), output, batch)
    return sums["nll"] / sums["weight"], {name: jnp.mean(value) for name, value in seen.items()}, expert_LN


def claims(found: dict[str, list[Trained]], changed: dict[str, np.ndarray]) -> list[Measure]:
    """Every arm against the linear router, and the methods against the controls."""
    moved = {name: late(changed_RCS, SET) for name, changed_RCS in changed.items()}
    perplexity = {name: [math.exp(one.held_out_loss) for one in each] for name, each in found.items()}
    measures = []
    for name in [name for name in found if name != "linear"]:
        measures += [
            paired_ratio(CHANGES.format(name), moved[name], moved["linear"], "lower"),
            paired_ratio(PERPLEXITY.format(name), perplexity[name], perplexity["linear"], "lower"),
        ]
    for method in METHODS:
        pairs = [
            (
                paired_ratio(
                    f"tokens that change experts, {method} / {control}",
                    moved[method],
                    moved[control],
                    "lower",
                ),
                paired_ratio(
                    f"perplexity, {method} / {control}", perplexity[method], perplexity[control], "lower"
                ),
            )
            for control in CONTROLS
        ]
        measures += [keeping_up(method, pairs), *(measure for pair in pairs for measure in pair)]
    return measures + [mean(f"perplexity, {name}", each, "x", "lower") for name, each in perplexity.items()]


def keeping_up(method: str, pairs: list[tuple[Measure, Measure]]) -> Measure:
    """How many controls are as good as the method in both respects: at least, as measured, at most.

    A control surely keeps up if both intervals are at 1 or above; it is surely beaten if one interval is
    below 1 and the other not above it.
    """
    sure = sum(all(one.interval[0] >= 1 for one in pair) for pair in pairs)
    measured = sum(all(one.value >= 1 for one in pair) for pair in pairs)
    beaten = sum(
        any(one.interval[1] < 1 for one in pair) and not any(one.interval[0] > 1 for one in pair)
        for pair in pairs
    )
    interval = (float(sure), float(len(pairs) - beaten))
    return Measure(UNBEATEN.format(method), measured, "controls", "lower", pairs[0][0].n, interval=interval)


def figures(seen: dict[str, list[dict[str, float]]], changed: dict[str, np.ndarray]) -> list[Measure]:
    """Each arm by itself."""
    measures = []
    for kind, what in enumerate(("set of experts changes", "first choice changes", "experts that are lost")):
        measures += [
            mean(f"{what}, {name}", late(each, kind), "share", "lower") for name, each in changed.items()
        ]
    for key, what, unit in (
        ("own", "entropy of a token's own row", "nats"),
        ("mixed", "entropy of the row it follows", "nats"),
        ("load", "largest load / mean", "x"),
    ):
        measures += [mean(f"{what}, {name}", [one[key] for one in each], unit) for name, each in seen.items()]
    for name in [name for name in seen if name != "linear"]:
        pair = ([one["noisy perplexity"] for one in seen[arm]] for arm in (name, "linear"))
        measures.append(paired_ratio(f"perplexity with replaced tokens, {name} / linear", *pair, "lower"))
    return measures


def chart(changed: dict[str, np.ndarray]) -> Chart:
    """Of every arm: mean over seeds, smallest to largest."""
    share = tuple(float(part + 1) / PARTS for part in range(PARTS - 1))
    curves = [Curve.of_seeds(name, share, changed_RCS[:, SET]) for name, changed_RCS in changed.items()]
    return Chart(
        "tokens whose experts are not yet those of the end", "share of the training", "share", tuple(curves)
    )


SIZES = {
    "tiny": Settings(
        steps=20, layers=1, heads=2, head_width=8, hidden=8, vocab=384, seq_len=16, batch_rows=8, rows=8,
        most_bytes=1 << 16,
    ),
    "default": Settings(),
    "full": Settings(steps=2600, layers=4, experts=16, vocab=1024, batch_rows=32, rows=256),
    "gpu": Settings(
        seeds=5, steps=10_000, layers=8, heads=8, head_width=64, experts=16, hidden=512, vocab=4096,
        seq_len=256, batch_rows=64, rows=256,
    ),
}  # fmt: skip
PAPER = Paper(
    title="Improving Routing in Sparse Mixture of Experts with Graph of Tokens (2025, arXiv 2505.00792)",
    claim=CLAIM,
    baseline="a linear router, and smoothing that does not look at the text",
    bars=BARS,
    sizes=SIZES,
    measure=measure,
)
