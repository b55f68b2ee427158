"""Which experts to keep for a kind of text, seen from router logits alone.

PreMoe: Lightening MoEs on Constrained Memory by Expert Pruning and Retrieval (2025, arXiv 2505.17639).
A model of several domains is calibrated with training text of each; every score ranks the experts of a layer,
and the best M are kept. Held-out loss is measured with masks, which for these routers is the same as cutting
(tests/contracts/test_surgery.py); one cut is checked here. Also measured: what text of one domain loses with
the experts of another, a generalist from all domains together, and whether the first router's view of a short
prompt finds its domain.

Differs from the paper: a small model instead of 30 to 700 billion parameters, loss instead of accuracy, so no
dramatic gap between scores is expected; the utility in the form of version 3, retrieval in that of version 1.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from configs import domains as recipes
from moejax.bench import calibration, domains, held_out, replicas
from moejax.bench.domains import Domains
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.report import Bar, Measure, mean, paired
from moejax.seams import Batch
from moejax.serving.model import Model
from moejax.surgery.allocate.uniform import uniform
from moejax.surgery.cut.experts import cut_experts, mask_experts
from moejax.surgery.retrieval import nearest, pooled, through_first_router
from moejax.surgery.score.expert_utility import ExpertUtility
from moejax.surgery.score.random import Random
from moejax.surgery.score.router_means import AllLogits, Frequency, MeanGate
from moejax.surgery.take import take_sides
from moejax.training.data.batches import held_out_batches
from moejax.training.data.packing import Rows
from moejax.training.program import as_batch

UTILITY, RANDOM = "utility", "random"
SCORES = {
    UTILITY: ExpertUtility(),
    "first choice's logit": ExpertUtility(candidates=1, threshold=0.0, transform="raw"),
    "activated logits": ExpertUtility(threshold=0.0, transform="raw"),
    "mean gate": MeanGate(),
    "frequency": Frequency(),
    "all logits": AllLogits(),
}
PARTS = (2, 4)  # one in so many experts is kept
PROMPTS = (8, 16, 64)  # tokens

CLAIM = (
    "experts ranked by predicted utility serve their domain better than random ones, at half and at a "
    "quarter of the experts; better than the experts of another domain; and a prompt of 64 tokens finds its "
    "domain more often than by chance"
)
OVER_RANDOM = {part: f"loss at 1/{part}: utility minus random" for part in PARTS}
MATCHED = "loss at 1/2: own domain's experts minus other domains'"
RETRIEVAL = f"retrieval from {PROMPTS[-1]} tokens: accuracy minus chance"
BARS = (
    *(Bar(name, at_most=0.0) for name in OVER_RANDOM.values()),
    Bar(MATCHED, at_most=0.0),
    Bar(RETRIEVAL, at_least=0.0),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is trained and measured."""

    recipe: str = "config"  # function of configs/domains.py
    steps: int = 1000
    seeds: int = 4
    calibration_rows: int = 256  # of a domain
    rows_each: int = 128  # held-out rows of a domain
    random_draws: int = 5
    prompts: int = 64  # of a domain


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What one trained model loses, in nats per token."""

    full: float
    by_score: dict[str, dict[int, float]]  # mean over domains, by 1/part
    matrix_CC: np.ndarray  # [experts of, text of], at 1/2
    generalist: float  # at 1/2
    retrieved: dict[int, float]  # share of prompts, by length
    cut_error: float  # of one cut against its mask


@dataclasses.dataclass(frozen=True)
class Study:
    """A trained model with the text that it is looked at with."""

    model: Model
    text: Domains
    rows_each: int

    @property
    def num_experts(self) -> int:
        return self.model.cfg.groups[0].blocks[0].ffn.num_experts

    def nats(self, scores, part: int, name: str) -> float:
        """Of held-out text of a domain, with one in `part` experts by these scores."""
        sides = mask_experts(self.model.cfg, self.keep(scores, part), self.model.sides)
        return held_out.nats(self.model, self.text.held_out[name], self.rows_each, sides)

    def keep(self, scores, part: int):
        return uniform(scores, self.num_experts // part)

    def own(self, scores: Mapping[str, tuple], part: int) -> float:
        """Mean over domains, each with its own experts."""
        return float(np.mean([self.nats(scores[name], part, name) for name in self.text.names]))

    def score(self, of, batches: Sequence[Batch]):
        return of.score(self.model.params, self.model.cfg, batches, self.model.sides)


def look(cfg: Settings, model: Model, text: Domains) -> Pruned:
    """At one trained model."""
    study = Study(model, text, cfg.rows_each)
    shown = calibration.of_training(text, cfg.calibration_rows).held_out
    batches = {name: _batches(rows) for name, rows in shown.items()}
    scores = {
        label: {name: study.score(of, own) for name, own in batches.items()} for label, of in SCORES.items()
    }
    by_score = {label: {part: study.own(own, part) for part in PARTS} for label, own in scores.items()}
    draws = [study.score(Random(seed), ()) for seed in range(cfg.random_draws)]
    by_score[RANDOM] = {
        part: float(np.mean([study.own(dict.fromkeys(text.names, draw), part) for draw in draws]))
        for part in PARTS
    }
    tasks = scores[UTILITY]
    everyone = pooled(list(tasks.values()))
    return Pruned(
        full=study.own(tasks, 1),
        by_score=by_score,
        matrix_CC=np.array([[study.nats(tasks[own], 2, name) for name in text.names] for own in text.names]),
        generalist=study.own(dict.fromkeys(text.names, everyone), 2),
        retrieved={length: retrieved(cfg, model, text, tasks, length) for length in PROMPTS},
        cut_error=cut_error(study, tasks[text.names[0]], text.names[0]),
    )


def _batches(rows: Rows) -> list[Batch]:
    return [as_batch(host) for host in held_out_batches(rows, held_out.BATCH_ROWS)]


def cut_error(study: Study, scores, name: str) -> float:
    """How far the loss of a cut model is from that of the masked one, relative."""
    model, keep = study.model, study.keep(scores, 2)
    params, m = cut_experts(model.params, model.cfg, keep)
    sides = take_sides(model.sides, model.cfg, keep)
    small = dataclasses.replace(model, params=params, cfg=m, sides=sides)
    cut = held_out.nats(small, study.text.held_out[name], study.rows_each)
    return abs(cut / study.nats(scores, 2, name) - 1)


def retrieved(cfg: Settings, model: Model, text: Domains, tasks, length: int) -> float:
    """Share of the prompts whose domain the first router finds; mean over domains."""
    params, m, sides = through_first_router(model.params, model.cfg, model.sides)
    share = []
    for name, rows in text.held_out.items():
        prompts = [first_tokens(as_batch(host), length) for host in held_out_batches(rows, 1, cfg.prompts)]
        found = [nearest(tasks, SCORES[UTILITY].score(params, m, [prompt], sides)) for prompt in prompts]
        share.append(np.mean([task == name for task in found]))
    return float(np.mean(share))


def first_tokens(batch: Batch, length: int) -> Batch:
    """The batch where only the first tokens of a row are there."""
    T = batch.valid_BT.shape[1]
    return batch.replace(valid_BT=batch.valid_BT & (np.arange(T) < length)[None])


def measure(cfg: Settings, inputs: Inputs) -> Findings:
    """Train from every seed, calibrate and prune."""
    text = domains.prepare(inputs, recipes.VOCAB, recipes.SEQ_LEN)
    run = getattr(recipes, cfg.recipe)()
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, steps=cfg.steps))
    trained = replicas.train(run, text, range(cfg.seeds), inputs.cache)
    seen = [look(cfg, one.model, text) for one in trained]
    return Findings(
        measures=(*_of_scores(seen), *_of_domains(seen, text.names), *_of_prompts(seen, len(text.names))),
        settings=text.settings,
        notes=text.notes,
        charts=(_chart(seen, run.model.groups[0].blocks[0].ffn.num_experts),),
    )


def _of_scores(seen: Sequence[Pruned]) -> list[Measure]:
    loss = lambda label, part: [one.by_score[label][part] for one in seen]
    measures = []
    for part in PARTS:
        own = loss(UTILITY, part)
        for other in (RANDOM, *(label for label in SCORES if label != UTILITY)):
            name = f"loss at 1/{part}: {UTILITY} minus {other}"
            measures.append(paired(name, own, loss(other, part), "nats", "lower"))
    measures.append(mean("loss with all experts", [one.full for one in seen], "nats", "lower"))
    for part in PARTS:
        for label in seen[0].by_score:
            measures.append(mean(f"loss at 1/{part}: {label}", loss(label, part), "nats", "lower"))
    worst = float(max(one.cut_error for one in seen))
    measures.append(Measure("loss of a cut model / of the masked one, minus 1", worst, "x", "lower"))
    return measures


def _of_domains(seen: Sequence[Pruned], names: Sequence[str]) -> list[Measure]:
    """The matrix of experts and texts, and the generalist."""
    own = [float(np.mean(np.diag(one.matrix_CC))) for one in seen]
    others = [float(np.mean(one.matrix_CC[~np.eye(len(names), dtype=bool)])) for one in seen]
    general = [one.generalist for one in seen]
    measures = [
        paired(MATCHED, own, others, "nats", "lower"),
        paired("loss at 1/2: own domain's experts minus a generalist's", own, general, "nats", "lower"),
        paired("loss at 1/2: a generalist's experts minus other domains'", general, others, "nats", "lower"),
    ]
    for row, experts in enumerate(names):
        for column, name in enumerate(names):
            values = [float(one.matrix_CC[row, column]) for one in seen]
            measures.append(
                mean(f"loss at 1/2: {name} with the experts of {experts}", values, "nats", "lower")
            )
    return measures


def _of_prompts(seen: Sequence[Pruned], num_domains: int) -> list[Measure]:
    return [
        mean(
            f"retrieval from {length} tokens: accuracy minus chance",
            [one.retrieved[length] - 1 / num_domains for one in seen],
            "share",
            "higher",
        )
        for length in PROMPTS
    ]


def _chart(seen: Sequence[Pruned], num_experts: int) -> Chart:
    kept = [num_experts // part for part in (1, *PARTS)]
    curves = [
        Curve.of_seeds(
            label, kept, [[one.full, *(one.by_score[label][part] for part in PARTS)] for one in seen]
        )
        for label in seen[0].by_score
    ]
    return Chart(
        "Held-out loss with the best experts of a domain", "experts kept", "nats/token", tuple(curves)
    )


PAPER = Paper(
    title="PreMoe: Lightening MoEs on Constrained Memory (2025, arXiv 2505.17639)",
    claim=CLAIM,
    baseline="random experts, those of another domain, and other scores",
    bars=BARS,
    sizes={
        "tiny": Settings("tiny", 20, seeds=3, calibration_rows=16, rows_each=8, random_draws=2, prompts=4),
        "default": Settings(),
        "full": Settings(steps=1800, calibration_rows=500, rows_each=256),
        "gpu": Settings(steps=1800, seeds=8, calibration_rows=500, rows_each=256),
    },
    measure=measure,
)
