"""Prepacking: prompts of very different lengths share rows, and nothing is padded to the longest.

Prepacking: A Simple Method for Fast Prefilling and Increased Throughput in Large Language Models (2024, arXiv
2404.09529). k prompts padded to the longest, m, are k rows of m tokens; packed into r rows they are r. The
promise is a speed-up of nearly k / r where arithmetic decides.

1. On the simulated executor, where a step is as long as the longest prompt: a prompt a step, or a bin a step.
   All steps cost the same there, so the speed-up is k / r by construction: it shows that the scheduler needs
   no more steps than bins, and nothing about time.
2. On real models, as the paper does it: one forward pass over [k, m] padded rows or over [r, m] packed ones,
   with segments and positions that begin anew, up to the logits of every prompt's first token. Sorting
   lengths and laying out rows counts. Prompts are paragraphs of real text with their own lengths. A dense
   model bears the claim, because an absent token costs it as much as one that is there; a mixture of experts
   routes no padding, so it has less to save, and is shown beside it.
3. On the real engine: a prompt a step against a bin a step, and their texts.

Differs from the paper: keys and values are not unpacked, as the engine writes them where they belong (3.);
the passes of 2. keep none. All tokens of a prompt are packed, its last one gives the first token.
Tested elsewhere: the worked example, best fit against first fit and the bounds of r in
tests/serving/schedulers/test_packing.py, equality of text in tests/contracts/test_scheduler.py.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

import moejax
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.report import Bar, Measure, mean, median, paired_ratio
from moejax.bench.serving_engines import Engine, Prompts, alike, dense, digits, moe, simulate, untrained
from moejax.model import forward as decoder
from moejax.seams import Batch
from moejax.serving.device import Sizes
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.schedulers.packing import Packing, pack
from moejax.serving.state import Job

CLAIM = (
    "Packed prompts are read at least 0.7 k / r times as fast as padded ones, 16 of very different lengths "
    "at least 1.3 times, with the same logits"
)
PACKED = "simulated: speed-up over (k / r)"
SPEED = "dense model: padded over packed, k={}"
SHARE = "dense model: speed-up over (k / r), k={}"
EQUAL = "dense model: packed over padded, equal lengths"
ERROR = "logits: largest difference of packed and padded"
SAME = "engine: texts that are the same"
MANY = 16  # k of the claim
TILE = 64  # rows of tokens are a multiple of it, padded and packed alike
BARS = (
    Bar(PACKED, at_least=0.7),
    Bar(SHARE.format(MANY), at_least=0.7),
    Bar(SPEED.format(MANY), at_least=1.3),
    Bar(EQUAL, at_most=1.1),
    Bar(ERROR, at_most=1e-4),
    Bar(SAME, at_least=1.0),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is packed, and by which models."""

    packs: int = 50  # batches on the simulated executor
    seeds: int = 5  # batches of real prompts
    rounds: int = 3  # of which the fastest counts, per batch
    sizes: tuple[int, ...] = (4, 8, 16, 32)  # k
    longest: int = 512  # bytes of a prompt
    layers: int = 4
    width: int = 128
    hidden: int = 512  # of the dense model; an expert has a quarter
    experts: int = 8
    k: int = 2


SIZES = {
    "tiny": Settings(
        packs=5, seeds=3, rounds=1, sizes=(16,), longest=128, layers=1, width=32, hidden=32, experts=4
    ),
    "default": Settings(),
    "full": Settings(packs=200, seeds=10, rounds=5, sizes=(4, 8, 16, 32, 64), width=256, hidden=1024),
    "gpu": Settings(packs=200, seeds=10, rounds=5, sizes=(4, 8, 16, 32, 64), layers=16, width=2048,
                    hidden=8192),
}  # fmt: skip


class Layout(NamedTuple):
    """Prompts in rows; the last token of prompt i is at (row_K[i], last_K[i])."""

    token_RM: np.ndarray
    pos_RM: np.ndarray
    seg_RM: np.ndarray  # from 1 in every row; 0 = padding
    row_K: np.ndarray
    last_K: np.ndarray


def laid_out(
    prompts: Sequence[Sequence[int]], bins: Sequence[Sequence[int]], rows: int, length: int
) -> Layout:
    """Prompts one after the other in their rows, each from position 0.

    Args:
      bins: which prompts are in which row.
      rows, length: of the arrays; rows without a bin are empty.
    """
    token_RM, pos_RM, seg_RM = (np.zeros((rows, length), np.int32) for _ in range(3))
    row_K, last_K = np.zeros((2, len(prompts)), np.int32)
    for row, members in enumerate(bins):
        offset = 0
        for number, i in enumerate(members, start=1):
            span = slice(offset, offset + len(prompts[i]))
            token_RM[row, span], pos_RM[row, span] = prompts[i], np.arange(len(prompts[i]))
            seg_RM[row, span] = number
            offset = span.stop
            row_K[i], last_K[i] = row, offset - 1
    return Layout(token_RM, pos_RM, seg_RM, row_K, last_K)


@functools.partial(jax.jit, static_argnames="m")
def first_logits(params, layout: Layout, *, m) -> jax.Array:
    """[K, V]: what follows every prompt."""
    valid_RM = layout.seg_RM > 0
    batch = Batch(layout.token_RM, layout.pos_RM, layout.seg_RM, valid_RM)
    hidden_KD = decoder.forward(params, m, batch).hidden_BTD[layout.row_K, layout.last_K]
    return decoder.unembed(params, m, hidden_KD[None])[0]


def measure(s: Settings, inputs: Inputs) -> Findings:
    """The simulated executor, forward passes, the engine."""
    prompts = Prompts(inputs.text)
    models = {
        "dense model": untrained(dense(s.layers, s.width, s.hidden), s.longest + 16, seed=0),
        "experts": untrained(moe(s.layers, s.width, s.hidden // 4, s.experts, s.k), s.longest + 16, seed=0),
    }
    passes = {name: [_passes(s, model, prompts, k) for k in s.sizes] for name, model in models.items()}
    measures = [*_simulated(s)]
    for name, of in passes.items():
        for k, found in zip(s.sizes, of, strict=True):
            measures += _timed(name, k, found)
    measures += [
        _equal_lengths(s, models["dense model"], prompts),
        Measure(
            ERROR, max(one.error for of in passes.values() for found in of for one in found), "nats", "lower"
        ),
        *_on_the_engine(s, models["dense model"], prompts),
    ]
    return Findings(tuple(measures), charts=(_chart(s, passes),))


def _simulated(s: Settings) -> list[Measure]:
    """16 prompts of lognormal lengths; steps as long as the longest."""
    rng, bound, speed = np.random.default_rng(0), [], []
    for _ in range(s.packs):
        lengths = np.clip(rng.lognormal(np.log(55), 0.9, MANY), 1, 1000).astype(int).tolist()
        rows = max(lengths)
        jobs = [Job(id, digits(id, length), 1) for id, length in enumerate(lengths)]
        apart = simulate(jobs, Fcfs(rows), slots=1, sizes=(rows,)).seconds
        together = simulate(jobs, Packing(rows), slots=MANY, sizes=(rows,)).seconds
        bound.append(MANY / len(pack(lengths, rows)))
        speed.append(apart / together)
    return [paired_ratio(PACKED, speed, bound, "higher"), mean("simulated: k / r", bound, "x")]


class Pass(NamedTuple):
    """One batch of prompts both ways."""

    padded: float  # s
    packed: float  # s
    bound: float  # k / r
    error: float  # of the logits
    rows: tuple[int, int]  # of tokens, padded and packed


def _passes(s: Settings, model: moejax.Model, prompts: Prompts, k: int) -> list[Pass]:
    """Both ways of every batch are compiled before they are timed."""
    drawn = prompts.paragraphs(s.longest, seed=k)
    return [_pass(s, model, list(itertools.islice(drawn, k))) for _ in range(s.seeds)]


def _pass(s: Settings, model: moejax.Model, prompts: list[tuple[int, ...]]) -> Pass:
    lengths = [len(prompt) for prompt in prompts]
    m = min(-(-max(lengths) // TILE) * TILE, s.longest)
    alone = [[i] for i in range(len(prompts))]
    ways = {
        "padded": lambda: laid_out(prompts, alone, len(prompts), m),
        "packed": lambda: laid_out(prompts, bins := pack(lengths, m), len(bins), m),
    }
    run = lambda way: jax.block_until_ready(first_logits(model.params, way(), m=model.cfg))
    logits = {name: np.asarray(run(way)) for name, way in ways.items()}
    seconds = {name: [] for name in ways}
    for number in range(s.rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            run(ways[name])
            seconds[name].append(time.perf_counter() - start)
    r = len(pack(lengths, m))
    error = float(np.abs(logits["padded"] - logits["packed"]).max())
    return Pass(*(min(of) for of in seconds.values()), len(prompts) / r, error, (len(prompts) * m, r * m))


def _timed(name: str, k: int, found: list[Pass]) -> list[Measure]:
    speed, bound = [one.padded / one.packed for one in found], [one.bound for one in found]
    return [
        mean(f"{name}: padded over packed, k={k}", speed, "x", "higher"),
        paired_ratio(f"{name}: speed-up over (k / r), k={k}", speed, bound, "higher"),
        mean(f"{name}: k / r, k={k}", bound, "x"),
    ]


def _equal_lengths(s: Settings, model: moejax.Model, prompts: Prompts) -> Measure:
    """Nothing to gain: every row is full."""
    length = s.longest // 2
    found = [_pass(s, model, prompts.cut([length] * 8, seed)) for seed in range(s.seeds)]
    return paired_ratio(EQUAL, [one.packed for one in found], [one.padded for one in found], "lower")


def _on_the_engine(s: Settings, model: moejax.Model, prompts: Prompts) -> list[Measure]:
    """Steps of one size, a prompt or a bin each."""
    sizes = Sizes(MANY, MANY * -(-(s.longest + 8) // 16), 16, (s.longest,))
    engine, drawn, speed, bound, same = (
        Engine(model, sizes),
        prompts.paragraphs(s.longest, seed=0),
        [],
        [],
        [],
    )
    for number in range(s.seeds + 1):
        jobs = [Job(i, prompt, 2) for i, prompt in enumerate(itertools.islice(drawn, MANY))]
        apart, together = (
            engine.serve(jobs, scheduler, slots=slots, sharing=False)
            for scheduler, slots in ((Fcfs(s.longest), 1), (Packing(s.longest), MANY))
        )
        same.append(alike(apart, together))
        if number:  # the first one compiled
            reading = [sum(r.seconds for r in arm.results if _reads(r)) for arm in (apart, together)]
            steps = [sum(map(_reads, arm.results)) for arm in (apart, together)]
            speed.append(reading[0] / reading[1])
            bound.append(steps[0] / steps[1])
    return [
        median("engine: a prompt a step over a bin a step", speed, "x", "higher"),
        median("engine: k / r", bound, "x"),
        Measure(SAME, min(same), "share", "higher", len(same)),
    ]


def _reads(result) -> bool:
    return any(work.start < work.run.given for work in result.plan.works)


def _chart(s: Settings, passes: dict[str, list[list[Pass]]]) -> Chart:
    k = tuple(map(float, s.sizes))
    curves = [
        Curve(name, k, tuple(float(np.mean([one.padded / one.packed for one in found])) for found in of))
        for name, of in passes.items()
    ]
    bound = tuple(float(np.mean([one.bound for one in found])) for found in passes["dense model"])
    return Chart(
        "prompts in packed rows", "prompts", "speed-up", (*curves, Curve("k / r", k, bound)), log_x=True
    )


PAPER = Paper(
    title="Prepacking: A Simple Method for Fast Prefilling and Increased Throughput in Large Language Models "
    "(2024, arXiv 2404.09529)",
    claim=CLAIM,
    baseline="every prompt in a row of its own, padded to the longest",
    bars=BARS,
    sizes=SIZES,
    measure=measure,
)
