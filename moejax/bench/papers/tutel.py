"""Tutel: one layer, many ways to run it in parallel, and a change of mind that moves no parameter.

Tutel: Adaptive Mixture-of-Experts at Scale (Hwang et al. 2022, arXiv 2206.03382). Eight devices hold experts
that are cut along their width over four of them. With r = 0 every device gathers all weights; with r >= 1
rows travel to r devices, and neighbours gather 1/r of an expert. Which r is best depends on the load: the
fullest expert gets f times the mean.

1. For every load and r, forward and backward on eight virtual devices: results against one device, bytes of
   the compiled program against the formula, and the r that the planner proposes against the one with which
   devices receive the fewest bytes of others.
2. Time of a step, every r in turn. The planner knows the linear costs of an exchange and of a gather,
   measured on the same devices.
3. Layouts of the parameters that the programs want, and a step of each on the same parameters.
4. Rows into cells and back by sorting against the product with a one-hot mask, over the number of tokens.

Virtual devices share the cores of one machine: a message is a copy in memory, all modes compute the same
rows, and nobody waits for the device with the fullest expert. So times say what copies cost, and nothing
about networks, overlap or scale.

Differs from the paper: what a layer needs in training on text (the course of f) is not measured here; buckets
are capacity factors.
Tested elsewhere: the worked slots, r-equivalence by hand, elements moved and two-level exchange in
tests/dispatch/test_adaptive.py and tests/dispatch/test_exchange.py, the planner's numbers in
tests/analysis/test_parallel_plan.py.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import numpy as np
from jax import lax

from moejax.analysis import parallel_plan
from moejax.analysis.flops import count
from moejax.analysis.overlap_plan import Linear
from moejax.analysis.parallel_plan import Costs, MoeShape
from moejax.bench import cells_both_ways, mesh_layer
from moejax.bench.collective_costs import line, milliseconds
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.report import Bar, Measure, mean, median, paired_ratio
from moejax.bench.rounds import interleave
from moejax.dispatch.adaptive import Adaptive, Mode
from moejax.dispatch.load import Load

CLAIM = (
    "Every r gives one device's numbers and moves the bytes of its formula; the best r falls as the load "
    "grows; changing it moves no parameter; the planner's choices beat the worst fixed r; sorting into cells "
    "gains on one-hot products with the number of tokens"
)
ERROR = "largest difference from one device, outputs and gradients"
BYTES = "counted over predicted bytes: largest distance from 1"
MOVED = "bytes of parameters that a change of r lays out anew"
CHOICE = "bytes received with the planner's r over the fewest: largest"
FALLS = "r that receives the fewest bytes, least load - greatest load: smallest over widths"
WORST = "time of the planner's r over the worst fixed r"
GROWS = "one-hot over sorting: speed-up at the most tokens over that at the fewest"
BARS = (
    Bar(ERROR, at_most=1e-5),
    Bar(BYTES, at_most=0.0),
    Bar(MOVED, at_most=0.0),
    Bar(CHOICE, at_most=1.05),
    Bar(FALLS, at_least=1.0),
    Bar(WORST, at_most=1.0),
    Bar(GROWS, at_least=1.5),
)
FACTORS = (1.0, 2.0, 4.0, 8.0)  # f
SLICES = 4


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the layers; hidden widths for which the best r changes within FACTORS."""

    tokens: int = 256  # on one device
    width: int = 128
    hidden: tuple[int, ...] = (128, 512)  # half of the tokens, and twice as many
    experts: int = 8
    rounds: int = 7
    cell_tokens: tuple[int, ...] = (512, 1024, 2048, 4096)
    quickly: bool = False  # compiled, for tests


SIZES = {
    "tiny": Settings(tokens=16, width=8, hidden=(32,), rounds=3, cell_tokens=(64, 256), quickly=True),
    "default": Settings(),
    "full": Settings(tokens=1024, width=256, hidden=(512, 2048), rounds=15, cell_tokens=(512, 2048, 8192)),
    "gpu": Settings(tokens=1024, width=256, hidden=(512, 2048), rounds=15, cell_tokens=(512, 2048, 8192)),
}  # one GPU makes no mesh of eight: run it with JAX_PLATFORMS=cpu


@dataclasses.dataclass(frozen=True)
class Case:
    """One width and load in every mode."""

    hidden: int
    factor: float
    bytes: dict[int, int]  # by r, counted
    predicted: dict[int, int]
    received: dict[int, float]  # of them, from other devices
    seconds: dict[int, list[float]]
    error: float
    least: int  # r that the planner's formula of traffic proposes
    fastest: int  # r that the planner proposes for the measured costs
    moved: int

    @property
    def best(self) -> int:
        """r with the fewest bytes from other devices."""
        return min(self.received, key=self.received.__getitem__)


def measure(s: Settings, inputs: Inputs) -> Findings:
    """All widths and loads, then cells."""
    load = Load(mesh_layer.DEVICES // SLICES, s.tokens, 1, s.experts, s.width, slices=SLICES)
    with jax.set_mesh(mesh_layer.mesh_of(load)):
        costs, fits = fitted(load, s.rounds)
        cases = [case(s, load, hidden, f, costs) for hidden, f in itertools.product(s.hidden, FACTORS)]
    notes = ("eight virtual devices on the cores of one machine: no figure here is about a network", *fits)
    return Findings((*_exact(s, cases), *_timed(cases), *_cells(s)), notes=notes, charts=_charts(s, cases))


def case(s: Settings, load: Load, hidden: int, factor: float, costs: Costs) -> Case:
    """Every r at one width and load."""
    load = dataclasses.replace(load, parameters=3 * s.experts * s.width * hidden)
    host = mesh_layer.drawn(load, hidden, mesh_layer.skewed(load, factor, seed=0), seed=0)
    with jax.set_mesh(jax.make_mesh((), ())):
        wanted = mesh_layer.one_device(Adaptive((Mode(),)), host)
    operands = mesh_layer.placed(host, sliced=True)
    shape = MoeShape(s.width, hidden, s.experts, load.devices, SLICES, s.tokens, k=1, products=3)
    schemes = {r: Adaptive((Mode(factor, r=r),)) for r in parallel_plan.degrees_of_sharing(SLICES)}
    programs = {r: mesh_layer.compiled(scheme, operands, s.quickly) for r, scheme in schemes.items()}
    moved = sum(relaid(program, operands) for program in programs.values())
    with jax.transfer_guard_device_to_device("disallow"):
        error = max(mesh_layer.difference(program(*operands.all), wanted) for program in programs.values())
    steps = {str(r): functools.partial(mesh_layer.run, programs[r], operands) for r in programs}
    seconds = interleave(steps, s.rounds, 1, lambda: None)
    (choice,) = parallel_plan.plan(shape, costs, (factor,), degrees=(1,))
    return Case(
        hidden=hidden,
        factor=factor,
        bytes={r: sum(count(program).collective_bytes.values()) for r, program in programs.items()},
        predicted={r: sum(scheme.collective_bytes(load, 2).values()) for r, scheme in schemes.items()},
        received={r: mesh_layer.received(program) for r, program in programs.items()},
        seconds={r: seconds[str(r)] for r in programs},
        error=error,
        least=parallel_plan.least_traffic(shape, factor),
        fastest=choice.r,
        moved=moved,
    )


def relaid(program, operands: mesh_layer.Operands) -> int:
    """Bytes of the parameters whose stored layout is not the one that the program wants."""
    wanted = program.input_shardings[0][2]
    return sum(
        0 if wanted[name].is_equivalent_to(w.sharding, w.ndim) else w.nbytes for name, w in operands.p.items()
    )


def fitted(load: Load, rounds: int) -> tuple[Costs, tuple[str, ...]]:
    """Linear costs of one message and of a gather. All modes compute the same rows, so arithmetic is free."""
    sizes = [2**n for n in range(10, 17, 2)]  # elements of one device
    exchange = [milliseconds(functools.partial(lax.all_to_all, axis_name=("fsdp", "expert"), split_axis=0,
                             concat_axis=0, tiled=True), n, rounds) for n in sizes]  # fmt: skip
    gather = [milliseconds(functools.partial(lax.all_gather, axis_name="fsdp", tiled=True), n, rounds)
              for n in sizes]  # fmt: skip
    devices = load.devices * load.slices
    message, r2_message = line([n / devices for n in sizes], [t / (devices - 1) for t in exchange])
    gathering, r2_gather = line([n * (load.slices - 1) for n in sizes], gather)
    notes = tuple(
        f"{name}: {of.alpha:.3g} ms + {of.beta:.3g} ms per element, r squared {r2:.3f}"
        for name, of, r2 in (("one message", message, r2_message), ("a gather", gathering, r2_gather))
    )
    return Costs(between=message, inside=message, gather=gathering, compute=Linear(0.0, 0.0), node=1), notes


def _exact(s: Settings, cases: list[Case]) -> list[Measure]:
    """What does not depend on the clock."""
    off = [abs(one.bytes[r] / one.predicted[r] - 1) for one in cases for r in one.bytes]
    best = {hidden: [one.best for one in cases if one.hidden == hidden] for hidden in s.hidden}
    choice = [one.received[one.least] / one.received[one.best] for one in cases]
    return [
        Measure(ERROR, max(one.error for one in cases), "share of the largest", "lower", len(cases)),
        Measure(BYTES, max(off), "share", "lower", len(off)),
        Measure(MOVED, float(sum(one.moved for one in cases)), "bytes", "lower", len(cases)),
        Measure(CHOICE, max(choice), "x", "lower", len(cases)),
        Measure(FALLS, float(min(of[0] - of[-1] for of in best.values())), "devices", "higher", len(best)),
    ]


def _timed(cases: list[Case]) -> list[Measure]:
    """Over the loads: the planner's r against the fastest, and against one r for all loads."""
    typical = [{r: float(np.median(of)) for r, of in one.seconds.items()} for one in cases]
    planned = [times[one.fastest] for one, times in zip(cases, typical, strict=True)]
    fastest = [min(times.values()) for times in typical]
    fixed = {r: [times[r] for times in typical] for r in typical[0]}
    worst, best = (pick(fixed, key=lambda r: np.mean(np.log(fixed[r]))) for pick in (max, min))
    return [
        paired_ratio(WORST, planned, fixed[worst], "lower"),
        paired_ratio("time of the planner's r over the best fixed r", planned, fixed[best], "lower"),
        paired_ratio("time of the planner's r over the fastest", planned, fastest, "lower"),
        *(
            median(f"H={one.hidden} f={one.factor:g} r={r}: step", of, "s", "lower")
            for one in cases
            for r, of in one.seconds.items()
        ),
        *(
            Measure(f"H={one.hidden} f={one.factor:g}: r by {how}", float(r), "devices", "neither")
            for one in cases
            for how, r in (("fewest bytes", one.best), ("planner", one.fastest))
        ),
    ]  # fmt: skip


def _charts(s: Settings, cases: list[Case]) -> tuple[Chart, ...]:
    def chart(title: str, unit: str, of: Callable, hidden: int) -> Chart:
        own = [one for one in cases if one.hidden == hidden]
        curves = tuple(Curve(f"r={r}", FACTORS, tuple(of(one, r) for one in own)) for r in own[0].bytes)
        return Chart(
            f"{title}, H={hidden}", "load of the fullest expert over the mean", unit, curves, log_x=True
        )

    megabytes = lambda one, r: one.received[r] / 1e6
    milli = lambda one, r: 1e3 * float(np.median(one.seconds[r]))
    return tuple(
        chart(*what, hidden)
        for hidden in s.hidden
        for what in (("bytes received in a step", "MB", megabytes), ("time of a step", "ms", milli))
    )


def _cells(s: Settings) -> list[Measure]:
    """One-hot products over sorting, and how that grows."""
    with jax.set_mesh(jax.make_mesh((), ())):
        found = cells_both_ways.seconds(s.cell_tokens, s.width, s.rounds)
    speed = {T: [a / b for a, b in zip(of["one-hot"], of["sorted"], strict=True)] for T, of in found.items()}
    return [
        paired_ratio(GROWS, speed[s.cell_tokens[-1]], speed[s.cell_tokens[0]], "higher"),
        *(mean(f"one-hot over sorting, {T} tokens", of, "x", "higher") for T, of in speed.items()),
    ]


PAPER = Paper(
    title="Tutel: Adaptive Mixture-of-Experts at Scale (2022, arXiv 2206.03382)",
    claim=CLAIM,
    baseline="one fixed r for all loads; one device; a one-hot mask",
    bars=BARS,
    sizes=SIZES,
    measure=measure,
)
