"""Does a model that is pruned in training end like a dense one of its average size?

The Journey Matters: Average Parameter Count over Pre-training Unifies Sparse and Dense Scaling Laws (Jin et
al. 2025, arXiv 2501.12486). Claims: at equal compute, pruning between 25% and 75% of it is near the best; the
pruned model has the loss of a dense one whose size is its average over training, with as much text, though
it ends smaller. Measured: four schedules whose runs are as long as equal compute (average size times tokens)
allows; dense models of the average, the last and the first size, as long as the run of 25-75%; one law
fitted to all of them by each of these sizes. In `full` also a mixture of four experts, one per token, whose
size is counted in all and per token. Size = weights in matrices, the unembedding among them.

Differs from the paper: small models, bytes as tokens, held-out instead of training loss. Dense models of
other sizes are narrower, with the same learning rate. Masked products cost what dense ones do, so compute is
a number of weights and not a time. Magnitudes are compared in units of what a matrix began with. In trials
with 60,000 weights in two layers and a sparsity of 0.8, pruned models ended worse than dense ones of the last
size; the default is about the largest that fits ten minutes. Worked numbers:
tests/training/rules/test_gradual_prune.py, tests/analysis/test_scaling_law.py.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from configs import base
from moejax.analysis import scaling_law
from moejax.attention.gqa import Gqa
from moejax.bench import domains, replicas
from moejax.bench.domains import Domains
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.replicas import Trained, Watch
from moejax.bench.report import Bar, Measure, mean, paired, paired_ratio
from moejax.config import ModelConfig, OptimConfig, Run, TrainConfig, require
from moejax.ffn.dense import Dense
from moejax.losses.next_token import NextToken
from moejax.model import forward as decoder
from moejax.training.data.tokenizer import MIN_VOCAB
from moejax.training.rules import masks
from moejax.training.rules.gradual_prune import GradualPrune, compute_schedule

CLAIM = (
    "at equal compute, pruning between 25% and 75% of it is not worse than earlier, later or at once; the "
    "loss is that of a dense model of the average size, below that of the last size, above that of the first"
)
OURS = "25-75%"
SCHEDULES = {"0-50%": (0.0, 0.5), OURS: (0.25, 0.75), "50-100%": (0.5, 1.0), "75% at once": (0.75, 0.75)}
SIZES = ("average", "last", "first")
EXPERTS = 4
NEAR = 0.02  # nats per byte
VOCAB = 272
HEADS = 2
ASPECT = 3  # width of the feed-forward layer over that of the model
UNIT = "nats/byte"


def against(other: str) -> str:
    """Name of a measure: what a pruned model loses more than another one."""
    return f"{OURS} - {other}"


BARS = (
    Bar(against("dense of average size"), at_least=-NEAR, at_most=NEAR),
    Bar(against("dense of last size"), at_most=0.0),
    Bar(against("dense of first size"), at_least=0.0),
    *(Bar(against(other), at_most=NEAR / 2) for other in SCHEDULES if other != OURS),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large, how long."""

    params: int = 120_000  # in matrices, before pruning
    layers: int = 4
    steps: int = 500  # of a dense run of equal compute
    batch_rows: int = 8
    seq_len: int = 64
    every: int = 10  # steps between events
    learning_rate: float = 4e-3
    sparsities: tuple[float, ...] = (0.5, 0.8)
    seeds: int = 3
    text_bytes: int = 1 << 19  # of each domain
    experts: bool = False  # also a mixture of experts, at the first sparsity


@dataclasses.dataclass(frozen=True)
class Arm:
    """One run from every seed."""

    size: dict[str, float]  # by SIZES
    tokens: float
    trained: list[Trained]

    @property
    def loss(self) -> list[float]:
        return [one.held_out_loss for one in self.trained]

    def point(self, size: str) -> scaling_law.Point:
        """Of the fit of a law by this size."""
        return scaling_law.Point(self.size[size], self.tokens, float(np.mean(self.loss)))


@dataclasses.dataclass(frozen=True)
class Lab:
    """What all arms share."""

    cfg: Settings
    text: Domains
    cache: str | None

    def arm(self, model: ModelConfig, first: float, steps: int, rule=None, watch: Watch | None = None) -> Arm:
        """Train a model of `first` weights for so many steps."""
        cfg = self.cfg
        events = [(0, 1.0), *(rule.events(steps) if rule else ())]
        train = TrainConfig(
            steps=steps,
            batch_rows=cfg.batch_rows,
            seq_len=cfg.seq_len,
            losses=(NextToken(),) if isinstance(model.groups[0].blocks[0].ffn, Dense) else base.losses(),
            optim=OptimConfig(learning_rate=cfg.learning_rate, warmup_steps=max(steps // 50, 1)),
            rules=(rule,) if rule else (),
        )
        run = Run(name="journey_matters_bench", model=model, train=train)
        size = {"average": first * scaling_law.avg_params(events, steps), "last": first * events[-1][1]}
        trained = replicas.train(run, self.text, range(cfg.seeds), self.cache, watch)
        return Arm(size | {"first": first}, steps * cfg.batch_rows * cfg.seq_len, trained)

    def pruned(self, sparsity: float, schedule: str, mixture: bool = False) -> Arm:
        """As long as the compute lasts."""
        start, end = SCHEDULES[schedule]
        density = compute_schedule(sparsity, 10**6, 1, start, end)[2]
        model, size = shaped(self.cfg, self.cfg.params, mixture)
        rule = GradualPrune(sparsity, start, end, self.cfg.every)
        watch = per_token(model, rule, self.cfg.every) if mixture else None
        return self.arm(model, size, round(self.cfg.steps / density), rule, watch)

    def dense(self, like: Arm, size: str) -> Arm:
        """A dense model of this size of another arm, with as much text."""
        model, found = shaped(self.cfg, like.size[size])
        return self.arm(model, found, len(like.trained[0].loss_S))


def shaped(
    cfg: Settings, params: float, mixture: bool = False, active: bool = False
) -> tuple[ModelConfig, int]:
    """(model of about so many weights in matrices, how many it has); all sizes are of nearly one form.

    Args:
      mixture: with EXPERTS per layer, one for each token.
      active: of the experts only one counts.
    """
    L, counted = cfg.layers, EXPERTS if mixture and not active else 1

    def hidden(width: int) -> float:
        return (params - VOCAB * width - 4 * L * width**2) / (3 * L * width * counted)

    widths = [width for width in range(2 * HEADS, 1025, 2 * HEADS) if hidden(width) >= 1]
    require(len(widths) > 0, f"{params:.0f} weights are too few for {L} layers; raise params or lower layers")
    width = min(widths, key=lambda width: abs(math.log(hidden(width) / (ASPECT * width))))
    F = round(hidden(width))
    attn = Gqa(num_heads=HEADS, num_kv_heads=HEADS, head_width=width // HEADS)
    ffn = base.moe(EXPERTS, F, 1) if mixture else Dense(F)
    size = VOCAB * width + L * width * (4 * width + 3 * F * counted)
    return base.mixtral(VOCAB, attn, ffn, layers=L, tied=False), size


def per_token(model: ModelConfig, rule: GradualPrune, every: int) -> Watch:
    """Notes how many of the weights that are left one token passes."""
    matrices = masks.prunable(decoder.specs(model), rule.dense)

    def see(params):
        left = masks.select(params, matrices)
        return {"weights": sum(jnp.count_nonzero(w) * matrices[path].used for path, w in left.items())}

    return Watch("weights per token", every, see)


def measure(cfg: Settings, inputs: Inputs) -> Findings:
    """Every arm from every seed."""
    lab = Lab(cfg, domains.prepare(inputs, MIN_VOCAB, cfg.seq_len, cfg.text_bytes), inputs.cache)
    found, charts = {}, []
    for sparsity in cfg.sparsities:
        arms = {name: lab.pruned(sparsity, name) for name in SCHEDULES}
        dense = {f"dense of {size} size": lab.dense(arms[OURS], size) for size in SIZES}
        found[sparsity] = arms | dense
        charts.append(_chart(sparsity, arms[OURS], tuple(dense.values())))
    everything = [arm for arms in found.values() for arm in arms.values()]
    measures = [
        *_over_sparsities(list(found.values())),
        *(measure for sparsity, arms in found.items() for measure in _of_sparsity(sparsity, arms)),
        *(_law(everything, size) for size in SIZES),
        *(_of_mixture(lab, cfg.sparsities[0]) if cfg.experts else ()),
    ]
    notes = (
        "differences are means over sparsities, a sample per seed",
        "compute is average size times tokens; a step with masks takes as long as one without",
        "where windows that end earlier win, the steps after them are what is short: the paper has thousands "
        "of times as many tokens in which the weights that are left can recover",
    )
    return Findings(tuple(measures), lab.text.settings, (*lab.text.notes, *notes), tuple(charts))


def _over_sparsities(found: list[dict[str, Arm]]) -> list[Measure]:
    """What the pruned model loses more than every other arm."""
    loss = {name: np.mean([arms[name].loss for arms in found], axis=0).tolist() for name in found[0]}
    return [paired(against(name), loss[OURS], loss[name], UNIT, "lower") for name in loss if name != OURS]


def _of_sparsity(sparsity: float, arms: dict[str, Arm]) -> list[Measure]:
    ours, name = arms[OURS], f"S={sparsity:g}"
    dense = [arms[f"dense of {size} size"] for size in SIZES]
    compute = [arms[schedule].size["average"] * arms[schedule].tokens for schedule in SCHEDULES]
    return [
        *(mean(f"{name}: held-out loss, {x}", arm.loss, UNIT, "lower") for x, arm in arms.items()),
        paired_ratio(f"{name}: dense size of equal loss / average size", *_equal_size(ours, dense)),
        _number(f"{name}: average size", ours.size["average"], "weights"),
        _number(f"{name}: size of the dense model for it", dense[0].size["first"], "weights"),
        _number(f"{name}: last size", ours.size["last"], "weights"),
        _number(f"{name}: compute of the schedules, largest / smallest", max(compute) / min(compute), "x"),
    ]


def _number(name: str, value: float, unit: str) -> Measure:
    return Measure(name, value, unit, "neither")


def _of_mixture(lab: Lab, sparsity: float) -> list[Measure]:
    """A pruned mixture of experts beside dense ones of its average size, in all and per token."""
    pruned = lab.pruned(sparsity, OURS, mixture=True)
    steps = len(pruned.trained[0].loss_S)
    per_token = float(np.mean([one.seen["weights"].mean() for one in pruned.trained]))
    measures = []
    for name, size in (("in all", pruned.size["average"]), ("per token", per_token)):
        model, found = shaped(lab.cfg, size, mixture=True, active=name == "per token")
        dense = lab.arm(model, found, steps)
        other = f"dense of average size {name}"
        measures += [
            paired(f"mixture, S={sparsity:g}: {against(other)}", pruned.loss, dense.loss, UNIT, "lower"),
            _number(f"mixture, S={sparsity:g}: average size {name}", size, "weights"),
        ]
    return measures


def _equal_size(ours: Arm, dense: list[Arm]) -> tuple[list[float], list[float]]:
    """Per seed: where the line through the dense losses meets the pruned one; the average size."""
    x = np.log([arm.size["first"] for arm in dense])
    found = []
    for loss, *each in zip(ours.loss, *(arm.loss for arm in dense), strict=True):
        slope, at_mean = np.polyfit(x - x.mean(), each, 1)
        found.append(math.exp(x.mean() + np.clip((loss - at_mean) / slope, -5, 5)))
    return found, [ours.size["average"]] * len(found)


def _law(arms: list[Arm], size: str) -> Measure:
    """How far from one law all runs are, if they are counted by this size."""
    points = [arm.point(size) for arm in arms]
    law = scaling_law.fit(points)
    error_N = np.array([law.loss(point.params, point.tokens) - point.loss for point in points])
    return Measure(f"error of one law by {size} size", float(np.sqrt(np.mean(error_N**2))), UNIT, "lower")


def _chart(sparsity: float, ours: Arm, dense: tuple[Arm, ...]) -> Chart:
    """The pruned model's loss at its last, average and first size, beside dense ones."""
    order = sorted(dense, key=lambda arm: arm.size["first"])
    x = tuple(float(arm.size["first"]) for arm in order)
    curves = (
        Curve.of_seeds("dense", x, np.transpose([arm.loss for arm in order])),
        Curve.of_seeds(f"pruned {OURS}", x, np.transpose([ours.loss] * len(x))),
    )
    return Chart(f"Sparsity {sparsity:g}: last, average and first size", "weights", UNIT, curves, log_x=True)


TINY = Settings(params=16_000, layers=1, steps=8, batch_rows=4, every=2, sparsities=(0.8,), text_bytes=40_000)
FULL = Settings(params=240_000, layers=4, steps=800, batch_rows=16, seeds=4, text_bytes=1 << 20, experts=True)
GPU = dataclasses.replace(FULL, params=900_000, layers=4, steps=6000, seq_len=128, text_bytes=1 << 22)
PAPER = Paper(
    title="The Journey Matters (Jin et al. 2025, arXiv 2501.12486)",
    claim=CLAIM,
    baseline="other schedules at equal compute; dense models of the average, the last and the first size",
    bars=BARS,
    sizes={"tiny": TINY, "default": Settings(), "full": FULL, "gpu": GPU},
    measure=measure,
)
