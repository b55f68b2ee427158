"""FSMoE: into how many chunks a layer is cut, and which gradients are sent meanwhile, by linear costs.

FSMoE: A Flexible and Scalable Training System for Sparse Mixture-of-Experts Models (Pan et al. 2025, arXiv
2501.10714). A layer keeps links between nodes, links inside a node, and arithmetic busy at once. The planner
(`analysis/overlap_plan.py`) chooses degrees of forward and backward passes apart.

1. Random costs and the layers of the paper's grid on its testbed B, with the published coefficients: the
   planner's time against the schedule played event by event, and its degree against all degrees played.
2. Predicted on that grid, four layers deep, forward and backward: the plan against one degree for both passes
   without overlap of the two kinds of links, gradients hidden in dense parts alone (PipeMoE), and against one
   chunk with gradients at the end.
3. Costs of collectives and products measured on eight virtual devices, and how well lines fit them.
4. The layer in 1, 2 and 4 chunks on these devices: results, and time.

Virtual devices have no links: a message is a copy by the same cores that compute, so chunks can only cost
there. That is shown, and no gain is claimed from it; the gain of 2. is a prediction from the paper's numbers.

Differs from the paper: of its grid, numbers of heads are left out, as only the dense part would see them; a
layer that drops nothing is taken as evenly loaded; the dense part is four products per layer and scores.
The gates are compared elsewhere, as routers.
Tested elsewhere: the worked schedules, the published testbed's times, gradients by hand and the optimality of
what is spread in tests/analysis/test_overlap_plan.py.
"""

import dataclasses
import functools
import itertools

import jax
import numpy as np
from jax import lax

from moejax.analysis import overlap_plan
from moejax.analysis.overlap_plan import DEGREES, Chunk, Layer, Linear, best_degree, layer_time, simulate
from moejax.bench import mesh_layer
from moejax.bench.collective_costs import AXES, line, milliseconds
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.report import Bar, Measure, median, paired_ratio
from moejax.bench.rounds import interleave
from moejax.dispatch.cells import FixedCell
from moejax.dispatch.load import Load

CLAIM = (
    "The planner's time is the schedule's and its degree the best one; forward and backward passes want "
    "different degrees in a third of the layers; the plan is predicted to gain over one degree without "
    "overlap of links; chunks change no number"
)
SCHEDULE = "planned over played time: largest distance from 1"
DEGREE = "played time of the planned degree over the best: largest"
DIFFER = "layers whose passes want different degrees"
GAIN = "predicted: PipeMoE's time over the plan's"
FIT = "measured costs: smallest r squared"
ERROR = "largest difference of chunks from one chunk"
BARS = (
    Bar(SCHEDULE, at_most=0.02),
    Bar(DEGREE, at_most=1.01),
    Bar(DIFFER, at_least=1 / 3),
    Bar(GAIN, at_least=1.05),
    Bar(FIT, at_least=0.9),
    Bar(ERROR, at_most=1e-5),
)
# Testbed B of the paper: ms, and ms per element or multiply-add. The devices of a node share experts.
GEMM, A2A = Linear(9.24e-2, 4.42e-11), Linear(1.75e-1, 3.06e-7)
AG, RS, AR = Linear(3.20e-2, 1.68e-7), Linear(3.91e-2, 1.67e-7), Linear(8.37e-2, 5.99e-7)
NODE = 4
DEPTH = 4  # layers of a predicted model
CHUNKS = (1, 2, 4)
COLLECTIVES = {
    "all-to-all": functools.partial(lax.all_to_all, axis_name=AXES, split_axis=0, concat_axis=0, tiled=True),
    "all-gather": functools.partial(lax.all_gather, axis_name=AXES, tiled=True),
    "reduce-scatter": functools.partial(lax.psum_scatter, axis_name=AXES, tiled=True),
    "all-reduce": functools.partial(lax.psum, axis_name=AXES),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is drawn and measured."""

    draws: int = 2000
    rounds: int = 7
    most: int = 18  # log2 of the largest message, in elements of one device
    tokens: int = 256  # on one device
    width: int = 128
    hidden: int = 256
    experts: int = 16
    quickly: bool = False  # compiled, for tests


SIZES = {
    "tiny": Settings(draws=50, rounds=3, most=15, tokens=16, width=8, hidden=16, quickly=True),
    "default": Settings(),
    "full": Settings(draws=20_000, rounds=21, tokens=1024, width=256, hidden=512),
    "gpu": Settings(draws=20_000, rounds=21, tokens=1024, width=256, hidden=512),
}  # one GPU makes no mesh of eight: run it with JAX_PLATFORMS=cpu


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of the paper's grid."""

    batch: int
    length: int
    width: int  # M
    hidden: int  # H
    slots: float  # k f
    products: int  # of an expert

    @property
    def layer(self) -> Layer:
        """Forward costs of the MoE layer."""
        rows = self.slots * self.batch * self.length * self.width
        n = Chunk(rows / NODE, rows, self.products * rows * self.hidden / NODE, rows)
        return Layer(A2A, AG, Linear(self.products * GEMM.alpha, GEMM.beta), RS, n)

    @property
    def dense(self) -> float:
        """ms of a forward pass of what is between two MoE layers: projections and scores of attention."""
        tokens = self.batch * self.length
        return 6 * GEMM.alpha + GEMM.beta * tokens * (4 * self.width**2 + 2 * self.length * self.width) / NODE

    @property
    def gradients(self) -> float:
        """Elements that a device sends for the dense part of a layer."""
        return 4 * self.width**2 / NODE


def grid() -> list[Setting]:
    """The layers of the paper's Table 4 on testbed B."""
    found = itertools.product(
        (1, 2, 4), (512, 1024, 2048), (1024, 2048, 4096), (2, 3, 4), (2.0, 2.4, 4.8), (2, 3)
    )
    return [Setting(B, L, M, ratio * M, slots, products) for B, L, M, ratio, slots, products in found]


def measure(s: Settings, inputs: Inputs) -> Findings:
    """Planned, predicted, measured."""
    settings = grid()
    load = Load(mesh_layer.DEVICES, s.tokens, 1, s.experts, s.width)
    with jax.set_mesh(mesh_layer.mesh_of(load)):
        measured = [*_fits(s), *_chunks(s, load)]
    notes = (
        "predicted from the published coefficients of testbed B, not measured",
        "eight virtual devices on the cores of one machine: chunks cannot overlap with anything there",
    )
    times = {name: [time(one) for one in settings] for name, time in TIMES.items()}
    measures = (*_planned(s, settings), *_predicted(times), *measured)
    return Findings(measures, notes=notes, charts=(_chart(settings, times),))


def _planned(s: Settings, settings: list[Setting]) -> list[Measure]:
    """The planner against the schedule, played for every degree."""
    rng, off, over = np.random.default_rng(0), [], []
    layers = [(drawn(rng), rng.choice([0.0, 10 ** rng.uniform(-1, 1)])) for _ in range(s.draws)]
    layers += [(layer, 0.0) for one in settings for layer in (one.layer, one.layer.backward())]
    for layer, gradients in layers:
        played = {r: simulate(layer.chunk(r), r, gradients) for r in DEGREES}
        off += [abs(layer_time(layer.chunk(r), r, gradients) / time - 1) for r, time in played.items()]
        over.append(played[best_degree(layer, gradients)[0]] / min(played.values()))
    differ = [best_degree(one.layer)[0] != best_degree(one.layer.backward())[0] for one in settings]
    return [
        Measure(SCHEDULE, max(off), "share", "lower", len(off)),
        Measure(DEGREE, max(over), "x", "lower", len(over)),
        Measure(DIFFER, float(np.mean(differ)), "share", "higher", len(settings)),
    ]


def drawn(rng: np.random.Generator) -> Layer:
    """Start-up times and work that the paper's testbeds span, log-uniform."""
    alpha, work = 10 ** rng.uniform(-2, 0, 4), 10 ** rng.uniform(-1.5, 1.5, 4)
    return Layer(*(Linear(*costs) for costs in zip(alpha, work, strict=True)), Chunk(1, 1, 1, 1))


def planned_time(one: Setting) -> float:
    """ms of DEPTH equal layers and their dense parts, forward and backward, as the planner has them."""
    back = one.layer.backward()
    plan = overlap_plan.plan(
        [one.layer] * DEPTH, [2 * one.dense] * DEPTH, [one.gradients] * DEPTH, AR, blocks=16
    )
    total = DEPTH * 3 * one.dense
    for each in plan:
        exposed = max(0.0, AR(each.gradients) - 2 * one.dense) if each.gradients > 0 else 0.0
        total += layer_time(one.layer.chunk(each.forward), each.forward)
        total += layer_time(back.chunk(each.backward), each.backward, exposed)
    return total


def pipelined_time(one: Setting) -> float:
    """ms with one degree for both passes, one link for all messages, gradients hidden in dense parts."""

    def on_one_link(layer: Layer, degree: int) -> float:
        chunk = layer.chunk(degree)
        return layer_time(Chunk(chunk.a2a + (chunk.ag + chunk.rs) / 2, 0.0, chunk.exp, 0.0), degree)

    back = one.layer.backward()
    passes = min(on_one_link(one.layer, r) + on_one_link(back, r) for r in DEGREES)
    exposed = max(0.0, AR(one.gradients) - 2 * one.dense)
    return DEPTH * (3 * one.dense + passes + exposed)


def plain_time(one: Setting) -> float:
    """ms with nothing hidden: one chunk, and all gradients at the end."""
    passes = sum(layer_time(layer.chunk(1), 1) for layer in (one.layer, one.layer.backward()))
    return DEPTH * (3 * one.dense + passes) + AR(DEPTH * one.gradients)


TIMES = {"the plan": planned_time, "PipeMoE": pipelined_time, "nothing hidden": plain_time}


def _predicted(times: dict[str, list[float]]) -> list[Measure]:
    """Over the grid."""
    planned, pipelined, plain = times.values()
    gains = [float(a > b) for a, b in zip(pipelined, planned, strict=True)]
    return [
        paired_ratio(GAIN, pipelined, planned, "higher"),
        paired_ratio("predicted: time with nothing hidden over the plan's", plain, planned, "higher"),
        Measure(
            "predicted: layers that gain over PipeMoE", float(np.mean(gains)), "share", "higher", len(gains)
        ),
    ]


def _chart(settings: list[Setting], times: dict[str, list[float]]) -> Chart:
    """By the width of the model, mean over the rest of the grid."""
    width_N = np.array([one.width for one in settings])
    widths = np.unique(width_N)
    curves = tuple(
        Curve(
            name, tuple(map(float, widths)), tuple(float(np.mean(np.array(of)[width_N == w])) for w in widths)
        )
        for name, of in times.items()
    )
    return Chart(f"{DEPTH} layers on testbed B", "width", "ms, predicted", curves, log_x=True)


def _fits(s: Settings) -> list[Measure]:
    """Lines through measured times, in ms over elements that a device brings, and over multiply-adds."""
    sizes = [2**n for n in range(s.most - 5, s.most + 1)]
    times = {name: [milliseconds(run, n, s.rounds) for n in sizes] for name, run in COLLECTIVES.items()}
    fits = {name: line(sizes, of) for name, of in times.items()}
    rows = [64 * 2**n for n in range(6)]
    fits["product"] = line([n * 256 * 256 for n in rows], [_product(n, s.rounds) for n in rows])
    found = [Measure(FIT, min(r2 for _, r2 in fits.values()), "share", "higher", len(fits))]
    for name, (cost, r2) in fits.items():
        found += [
            Measure(f"{name}: to start", cost.alpha, "ms", "lower", len(sizes)),
            Measure(f"{name}: per million", 1e6 * cost.beta, "ms", "lower", len(sizes)),
            Measure(f"{name}: r squared", r2, "share", "higher", len(sizes)),
        ]
    return found


def _product(rows: int, rounds: int) -> float:
    """Median ms of a product of `rows` rows with a square matrix, on one device."""
    x, w = (jax.device_put(np.ones((n, 256), np.float32), jax.devices()[0]) for n in (rows, 256))
    multiply = jax.jit(lambda x, w: x @ w)
    with jax.set_mesh(jax.make_mesh((), ())):
        one = lambda: jax.block_until_ready(multiply(x, w))
        one()
        return 1e3 * float(np.median(interleave({"": one}, rounds, 3, lambda: None)[""]))


def _chunks(s: Settings, load: Load) -> list[Measure]:
    """The layer in several chunks, forward and backward."""
    host = mesh_layer.drawn(load, s.hidden, mesh_layer.skewed(load, 1.0, seed=0), seed=0)
    operands = mesh_layer.placed(host, sliced=False)
    programs = {n: mesh_layer.compiled(FixedCell(1.25, chunks=n), operands, s.quickly) for n in CHUNKS}
    results = {n: jax.tree.map(np.asarray, program(*operands.all)) for n, program in programs.items()}
    error = max(mesh_layer.difference(results[n], results[1]) for n in CHUNKS[1:])
    steps = {str(n): functools.partial(mesh_layer.run, programs[n], operands) for n in CHUNKS}
    seconds = interleave(steps, s.rounds, 1, lambda: None)
    return [
        Measure(ERROR, error, "share of the largest", "lower", len(CHUNKS) - 1),
        *(median(f"virtual devices: step in {n} chunks", of, "s", "lower") for n, of in seconds.items()),
        *(
            paired_ratio(
                f"virtual devices: time of {n} chunks over one", seconds[str(n)], seconds["1"], "lower"
            )
            for n in CHUNKS[1:]
        ),
    ]


PAPER = Paper(
    title="FSMoE: A Flexible and Scalable Training System for Sparse Mixture-of-Experts Models "
    "(2025, arXiv 2501.10714)",
    claim=CLAIM,
    baseline="every degree played; one degree for both passes without overlap of links; one chunk",
    bars=BARS,
    sizes=SIZES,
    measure=measure,
)
