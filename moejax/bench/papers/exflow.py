"""Experts that follow one another placed on one device.

Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts Model Inference (ExFlow; 2024,
arXiv 2401.08383). A placement is solved from the routing of training text; on held-out text the share of
transitions that change device is compared with that of the contiguous placement and with 1 - 1/P of even
routing. The experts of the model are relabelled by the placement, and its logits compared. Then tokens travel
for real: one all-to-all per layer over virtual devices, whose rows are counted.

Differs from the paper: a small model with one expert per token; counts of rows instead of times, because
virtual devices have no network; coordinate ascent by linear assignments instead of a MIP solver. The
attention of tokens that stay where their last expert was, and the keys and values it needs there, are not
built.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from configs import domains as recipes
from moejax.analysis.routing.trace import RoutingTrace
from moejax.bench import calibration, domains, held_out, replicas
from moejax.bench.domains import Domains
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.report import Bar, Measure, mean, paired_ratio
from moejax.bench.token_moves import rows_sent
from moejax.model import forward as decoder
from moejax.placement.affinity import (
    PlacementCost,
    Topology,
    contiguous,
    placement_cost,
    placement_to_order,
    solve_placement,
    transition_counts,
)
from moejax.serving.model import Model
from moejax.surgery.cut.permute import permute_experts
from moejax.surgery.take import per_block, take_sides
from moejax.training.data.batches import held_out_batches
from moejax.training.program import as_batch

DEVICES = (2, 4, 8)

CLAIM = (
    "on held-out text, experts placed by affinity change device at least 5% less often than contiguous ones "
    "and than even routing would, on 4 devices; the relabelled model has the same logits"
)
OVER_PLAIN = "moves at P=4: affinity / contiguous"
OVER_EVEN = "moves at P=4: affinity / even routing (1 - 1/P)"
LOGITS = "largest change of a logit by relabelling / largest logit"
BARS = (Bar(OVER_PLAIN, at_most=0.95), Bar(OVER_EVEN, at_most=0.95), Bar(LOGITS, at_most=1e-5))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is trained and measured."""

    recipe: str = "top1"  # function of configs/domains.py
    steps: int = 1000
    seeds: int = 4
    fit_tokens: int = 6000
    test_tokens: int = 12_000
    sent_tokens: int = 2048  # that travel
    restarts: int = 8


@dataclasses.dataclass(frozen=True)
class Placed:
    """One trained model over P devices."""

    plain: PlacementCost
    affine: PlacementCost
    sent_plain: int  # rows, all transitions
    sent_affine: int
    change: float  # of a logit


def first_choices(model: Model, text: Domains, tokens: int) -> np.ndarray:
    """[L, N]: the first expert of about so many tokens of held-out text, equally many of every domain."""
    rows_each = -(-tokens // (recipes.SEQ_LEN * len(text.held_out)))
    return first(held_out.trace(model, text, rows_each))


def first(trace: RoutingTrace) -> np.ndarray:
    """First choices of a trace, [L, N]."""
    return trace.expert_LNK[:, :, 0].astype(np.int64)


def look(cfg: Settings, model: Model, text: Domains) -> dict[int, Placed]:
    """At one trained model, on as many devices as divide its experts."""
    E = model.cfg.groups[0].blocks[0].ffn.num_experts
    shown = calibration.of_training(text, text.train.num_rows)
    fit = transition_counts(first_choices(model, shown, cfg.fit_tokens), E)
    test_LN = first_choices(model, text, cfg.test_tokens)
    return {P: placed(cfg, model, text, (fit, test_LN, P)) for P in DEVICES if E % P == 0}


def placed(cfg: Settings, model: Model, text: Domains, what: tuple[np.ndarray, np.ndarray, int]) -> Placed:
    """The placement for P devices, what it costs, and what it does to the model."""
    fit, test_LN, P = what
    L, E = len(test_LN), fit.shape[1]
    topology, test = Topology(P), transition_counts(test_LN, E)
    plain, affine = contiguous(L, E, P), solve_placement(fit, topology, cfg.restarts)
    return Placed(
        placement_cost(test, plain, topology),
        placement_cost(test, affine, topology),
        sent(cfg, plain, test_LN, P),
        sent(cfg, affine, test_LN, P),
        change_of_logits(model, text, affine),
    )


def sent(cfg: Settings, placement: np.ndarray, expert_LN: np.ndarray, P: int) -> int:
    """Rows that change device between layers when tokens travel; 0 where there are too few devices."""
    if jax.local_device_count() < P:
        return 0
    N = min(cfg.sent_tokens, expert_LN.shape[1]) // P * P
    device_LN = np.take_along_axis(placement, expert_LN[:, :N], axis=1)
    return int(rows_sent(device_LN, P)[1:].sum())


def change_of_logits(model: Model, text: Domains, placement: np.ndarray) -> float:
    """By relabelling the experts in the order of the placement, relative to the largest logit."""
    order = per_block(model.cfg, placement_to_order(placement))
    params, m = permute_experts(model.params, model.cfg, order)
    sides = take_sides(model.sides, model.cfg, order)
    rows = next(iter(text.held_out.values()))
    batch = as_batch(next(iter(held_out_batches(rows, 8))))
    before = np.asarray(_logits(model.params, batch, model.sides, m=m))
    after = np.asarray(_logits(params, batch, sides, m=m))
    return float(np.abs(after - before).max() / np.abs(before).max())


def _forward(params, batch, sides, *, m):
    return decoder.forward(params, m, batch, sides=sides).logits


_logits = jax.jit(_forward, static_argnames="m")


def measure(cfg: Settings, inputs: Inputs) -> Findings:
    """Train from every seed, place, and count on held-out text."""
    text = domains.prepare(inputs, recipes.VOCAB, recipes.SEQ_LEN)
    run = getattr(recipes, cfg.recipe)()
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, steps=cfg.steps))
    trained = replicas.train(run, text, range(cfg.seeds), inputs.cache)
    seen = [look(cfg, one.model, text) for one in trained]
    change = max(found.change for one in seen for found in one.values())
    notes = [*text.notes]
    if jax.local_device_count() < max(DEVICES):
        notes.append(
            f"rows were counted on up to {jax.local_device_count()} devices; on CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={max(DEVICES)} for all"
        )
    return Findings(
        measures=(
            *(m for P in seen[0] for m in _of_devices(P, [one[P] for one in seen])),
            Measure(LOGITS, change, "x", "lower"),
        ),
        settings=text.settings,
        notes=tuple(notes),
        charts=(_chart(seen),),
    )


def _of_devices(P: int, found: Sequence[Placed]) -> list[Measure]:
    plain, affine = ([getattr(one, name).hop_fraction for one in found] for name in ("plain", "affine"))
    measures = [
        paired_ratio(f"moves at P={P}: affinity / contiguous", affine, plain, "lower"),
        paired_ratio(
            f"moves at P={P}: affinity / even routing (1 - 1/P)", affine, [1 - 1 / P] * len(found), "lower"
        ),
        mean(f"moves at P={P}: contiguous", plain, "share", "lower"),
        mean(f"moves at P={P}: affinity", affine, "share", "lower"),
        mean(f"largest load at P={P}: contiguous", [one.plain.max_load for one in found], "x", "lower"),
        mean(f"largest load at P={P}: affinity", [one.affine.max_load for one in found], "x", "lower"),
    ]
    if all(one.sent_plain for one in found):
        sent_plain, sent_affine = [one.sent_plain for one in found], [one.sent_affine for one in found]
        measures += [
            mean(f"rows sent at P={P}: contiguous", sent_plain, "rows", "lower"),
            mean(f"rows sent at P={P}: affinity", sent_affine, "rows", "lower"),
            paired_ratio(f"rows sent at P={P}: affinity / contiguous", sent_affine, sent_plain, "lower"),
        ]
    return measures


def _chart(seen: Sequence[dict[int, Placed]]) -> Chart:
    devices = list(seen[0])
    lines = {"contiguous": "plain", "by affinity": "affine"}
    curves = [
        Curve.of_seeds(
            label, devices, [[getattr(one[P], name).hop_fraction for P in devices] for one in seen]
        )
        for label, name in lines.items()
    ]
    even = Curve("even routing", tuple(map(float, devices)), tuple(1 - 1 / P for P in devices))
    return Chart("Transitions that change device", "devices", "share", (*curves, even))


PAPER = Paper(
    title="Exploiting Inter-Layer Expert Affinity (ExFlow; 2024, arXiv 2401.08383)",
    claim=CLAIM,
    baseline="the contiguous placement, and 1 - 1/P of even routing",
    bars=BARS,
    sizes={
        "tiny": Settings("tiny", steps=20, seeds=3, fit_tokens=1024, test_tokens=1024, sent_tokens=256),
        "default": Settings(),
        "full": Settings(steps=1800, test_tokens=48_000, restarts=16),
        "gpu": Settings(steps=1800, seeds=8, test_tokens=48_000, restarts=16),
    },
    measure=measure,
)
