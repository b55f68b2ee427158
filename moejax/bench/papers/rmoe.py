"""Layerwise Recurrent Router for Mixture-of-Experts (Qiu et al., 2024, arXiv 2408.06793).

Claim: a router that carries what the layers below saw, through one GRU over depth, chooses more softly
(the two best experts are closer, and less mass lies on the chosen ones), tells more about the next layer's
choice, and costs nothing in loss. Equal seeds, data and steps; arms: the linear router, an MLP router is
the GRU without passing (NP: same parameters and FLOPs), the GRU without gradient between layers (detach).

Differs from the paper: BPE text of several kinds instead of characters; four layers; what a trained router
does is measured on held-out text by the trace. The GRU's worked numbers are in
tests/routers/score/test_recurrent.py, those of the statistics in tests/analysis/routing/test_balance.py.
"""

import dataclasses
import itertools

import numpy as np

from configs import domains as base
from moejax.analysis.routing import balance
from moejax.analysis.routing.trace import RoutingTrace
from moejax.bench import domains, held_out, replicas
from moejax.bench.moe_variants import with_moe
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.report import Bar, mean, paired_ratio
from moejax.config import Run
from moejax.routers.score.linear import Linear
from moejax.routers.score.recurrent import Recurrent

CLAIM = (
    "a recurrent router chooses more softly than a linear one (best over second best at most half, less mass "
    "on the chosen), neighbouring layers' scores share more information, and the loss is not worse"
)
INNER, OUTER = "best / second best, RMoE / linear", "mass of the chosen, RMoE / linear"
SHARED, OVER_NP = "information between layers, RMoE / linear", "information between layers, RMoE / NP"
LOSS, LOSS_NP = "held-out loss, RMoE / linear", "held-out loss, RMoE / NP"
BARS = (Bar(INNER, at_most=0.5), Bar(OUTER, at_most=1.0), Bar(SHARED, at_least=1.0), Bar(LOSS, at_most=1.005))
SHORT = (
    "the paper trains ten and more times as long, and what makes a linear router sharp comes with time; what "
    "passing on a state adds by itself is told by RMoE / NP, which have the same parameters"
)
ARMS = {
    "linear": lambda width: Linear(),
    "RMoE": lambda width: Recurrent(width=width),
    "NP": lambda width: Recurrent(width=width, recurrent="np"),
    "detach": lambda width: Recurrent(width=width, recurrent="detach"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long to train what."""

    seeds: int = 3
    steps: int = 300
    layers: int = 4
    width: int = 32  # of the GRU
    rows: int = 128  # held-out rows of every domain that are traced
    tiny: bool = False  # two layers of eight experts


def measure(cfg: Settings, inputs: Inputs) -> Findings:
    """Train every arm from every seed, and look at loss and routers."""
    text = domains.prepare(inputs, base.VOCAB, base.SEQ_LEN)
    found = {name: replicas.train(run_of(cfg, name), text, range(cfg.seeds), inputs.cache) for name in ARMS}
    loss = {name: [one.held_out_loss for one in trained] for name, trained in found.items()}
    seen = {
        name: [statistics(held_out.trace(one.model, text, cfg.rows, scores=True)) for one in trained]
        for name, trained in found.items()
    }
    inner, outer, shared = ({name: [s[i] for s in each] for name, each in seen.items()} for i in range(3))
    measures = [
        paired_ratio(INNER, inner["RMoE"], inner["linear"], "lower"),
        paired_ratio(OUTER, outer["RMoE"], outer["linear"], "lower"),
        paired_ratio(SHARED, shared["RMoE"], shared["linear"], "higher"),
        paired_ratio(OVER_NP, shared["RMoE"], shared["NP"], "higher"),
        paired_ratio(LOSS, loss["RMoE"], loss["linear"], "lower"),
        paired_ratio(LOSS_NP, loss["RMoE"], loss["NP"], "lower"),
        paired_ratio("held-out loss, detach / linear", loss["detach"], loss["linear"], "lower"),
        *(mean(f"held-out loss, {name}", each, "nats/token", "lower") for name, each in loss.items()),
        *(mean(f"best / second best, {name}", each, "x") for name, each in inner.items()),
        *(mean(f"mass of the chosen, {name}", each, "share") for name, each in outer.items()),
        *(mean(f"information between layers, {name}", each, "nats") for name, each in shared.items()),
    ]
    return Findings(tuple(measures), text.settings, (*text.notes, SHORT), (learning_curves(found),))


def run_of(cfg: Settings, arm: str) -> Run:
    """The training run of an arm."""
    run = base.tiny() if cfg.tiny else base.config()
    (group,) = run.model.groups
    deep = dataclasses.replace(run.model, groups=(dataclasses.replace(group, repeat=cfg.layers),))
    model = with_moe(deep, lambda ffn: dataclasses.replace(ffn, scorer=ARMS[arm](cfg.width)))
    return dataclasses.replace(
        run,
        name=f"rmoe_{arm}",
        model=model,
        train=dataclasses.replace(run.train, steps=cfg.steps),
    )


def statistics(trace: RoutingTrace) -> tuple[float, float, float]:
    """Means over layers: best over second best, mass of the chosen, information between neighbours."""
    layers = tuple(trace.layers())
    inner = [balance.inner_balance(layer.score_NE) for layer in layers]
    outer = [balance.outer_balance(layer) for layer in layers]
    shared = [balance.binned_information(a.score_NE, b.score_NE) for a, b in itertools.pairwise(layers)]
    return float(np.mean(inner)), float(np.mean(outer)), float(np.mean(shared))


def learning_curves(found: dict[str, list[replicas.Trained]], parts: int = 40) -> Chart:
    """Training loss of every arm: mean over seeds, smallest to largest."""
    curves = []
    for name, trained in found.items():
        loss_RS = np.stack([one.loss_S for one in trained])
        pieces = np.array_split(np.arange(loss_RS.shape[1]), min(parts, loss_RS.shape[1]))
        y_RP = np.stack([loss_RS[:, piece].mean(axis=1) for piece in pieces], axis=1)
        curves.append(Curve.of_seeds(name, [piece[-1] + 1 for piece in pieces], y_RP))
    return Chart("training loss", "step", "nats per token", tuple(curves))


PAPER = Paper(
    title="Layerwise Recurrent Router for Mixture-of-Experts (Qiu et al., 2024, arXiv 2408.06793)",
    claim=CLAIM,
    baseline="a linear router, and the same GRU that begins anew in every layer (NP)",
    bars=BARS,
    sizes={
        "tiny": Settings(seeds=3, steps=10, layers=2, width=8, rows=4, tiny=True),
        "default": Settings(),
        "full": Settings(steps=1500, layers=6, width=64),
        "gpu": Settings(seeds=5, steps=20_000, layers=8, width=64),
    },
    measure=measure,
)
