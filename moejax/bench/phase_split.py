"""Shortest prompts first, with age, against first come, first served: who waits how long for a first token.

Nexus (Shi et al. 2025, arXiv 2507.06608). Simulated: one queue of prompts through the engine's own loop and
schedulers, 8,000 positions per second. What part of a GPU a phase gets is planned and not simulated.
"""

import dataclasses
import itertools
import time

import numpy as np
from absl import flags

from moejax.analysis import machine, phase_split_plan
from moejax.analysis.phase_split_plan import Device, Rule, Shape
from moejax.bench.report import Bar, Measure, Report, median
from moejax.bench.run import finish
from moejax.flags import Call, Program
from moejax.serving.engine import serve
from moejax.serving.pages import Pages
from moejax.serving.schedulers.phase_split import PhaseSplit
from moejax.serving.simulated import Latency, Simulated
from moejax.serving.state import Job, ServeState

SUMMARY = """
Compare waits for the first token, shortest prompts first and first come, first served, simulated.

    python -m moejax.bench phase_split --json=results/phase_split.json
    python -m moejax.bench phase_split --size=tiny
"""
RATE, SHORT, LONG, SHARE = 8000.0, 496, 5905, 0.6  # positions/s; mean tokens; share of short prompts
LEAST = 0.15
OLDEST = 1e9  # with so much for age whoever came first is first
GAMMAS = (15.0, 1000.0)
STEADY = "constant loads whose split settles at once"
MEAN = f"gamma {GAMMAS[0]:g}: mean wait saved"
CLAIM = f"at 80% load shortest first with age saves {LEAST:.0%} or more of the mean wait for the first token"
# A decoder of 8 billion parameters on a GPU of 120 TFLOP/s and 860 GB/s, whose gains fade from 60% on.
SHAPE = Shape(dense=8e9, expert=0.0, num_experts=1, k=1, kv_bytes=131072.0, kv_flops=524288.0)
GPU = Device(flops=1.2e14, bandwidth=8.6e11, saturation=0.6, decay=0.3)


@dataclasses.dataclass(frozen=True)
class PhaseSplitStudy:
    """What to simulate."""

    load: float = 0.8  # of what the device can read
    requests: int = 2000
    seeds: int = 5
    budget: int = 2048  # positions of a step


def tiny() -> PhaseSplitStudy:
    """Seconds."""
    return PhaseSplitStudy(requests=120, seeds=3)


def mixed(cfg: PhaseSplitStudy, seed: int) -> list[Job]:
    """Short and long prompts of exponential lengths, Poisson arrivals; one token is wanted of each."""
    rng = np.random.default_rng(seed)
    mean = np.where(rng.random(cfg.requests) < SHARE, SHORT, LONG)
    lengths = np.maximum(np.rint(rng.exponential(mean)), 1).astype(int)
    rate = cfg.load * RATE / (SHARE * SHORT + (1 - SHARE) * LONG)
    arrival = np.cumsum(rng.exponential(1 / rate, size=cfg.requests)).tolist()
    return [Job(i, (0,) * n, 1, arrival[i]) for i, n in enumerate(lengths.tolist())]


def waits(jobs: list[Job], gamma: float, budget: int) -> np.ndarray:
    """Seconds from arrival to first token."""
    longest = max(len(job.prompt) for job in jobs)
    state = ServeState(len(jobs), Pages(len(jobs) * (1 + longest // 512), 512, sharing=False), num_layers=1)
    scheduler = PhaseSplit(SHAPE, GPU, budget, gamma)
    found = np.zeros(len(jobs))
    for step in serve(jobs, scheduler, Simulated(Latency(row=1 / RATE), 1), state, ahead=0):
        for drawn in step.written:
            found[drawn.job] = step.now - jobs[drawn.job].arrival
    return found


def shares(load: int, start: int, steps: int = 20) -> list[int]:
    """The shares of prefill that a constant load leads to, from one start."""
    reading = SHAPE.operators(2048, 2048 * 1024, 2048)
    writing = SHAPE.operators(load, load * 1000, load * 1000)
    prefill = lambda percent: phase_split_plan.prefill_time(reading, percent / 100, GPU)
    decode = lambda percent: phase_split_plan.decode_time(writing, percent / 100, GPU, reading)
    found = [start]
    for _ in range(steps):
        found.append(phase_split_plan.choose(prefill, decode, 0.5, found[-1], Rule()).prefill)
    return found


def run(cfg: PhaseSplitStudy) -> Report:
    """Several draws of requests, each with every gamma; and the controller under constant load."""
    start = time.monotonic()
    figures: dict[float, list[np.ndarray]] = {}
    for gamma in (OLDEST, *GAMMAS):
        figures[gamma] = [waits(mixed(cfg, seed), gamma, cfg.budget) for seed in range(cfg.seeds)]
    paths = [shares(load, start) for load in (1, 8, 64, 256) for start in (5, 50, 95)]
    steady = [all(a == b for a, b in itertools.pairwise(path[1:])) for path in paths]
    settled = Measure(STEADY, float(np.mean(steady)), "share", "higher", len(paths))
    return Report(
        name="shortest prompts first",
        claim=CLAIM + "; under constant load the split does not change",
        source="the engine's loop on a simulated executor; no model runs and no GPU is divided",
        settings={
            "prompts": f"{SHARE:.0%} of {SHORT} and the others of {LONG} tokens on average, exponential",
            "load": f"{cfg.load:.0%} of {RATE:g} positions/s, {cfg.budget} a step",
            "requests": f"{cfg.requests} per draw, {cfg.seeds} draws",
        },
        baseline="first come, first served: the same scheduler with age above all",
        measures=(*_measures(figures), settled),
        bar=(Bar(MEAN, LEAST), Bar(STEADY, 1.0)),
        machine=machine.describe(),
        seconds=time.monotonic() - start,
        notes=("long prompts pay: the longest wait grows, the more the smaller gamma is",),
    )


def _measures(figures: dict[float, list[np.ndarray]]) -> list[Measure]:
    found = []
    for gamma in GAMMAS:
        pairs = list(zip(figures[OLDEST], figures[gamma], strict=True))
        saved = lambda of, pairs=pairs: [1 - of(new) / of(old) for old, new in pairs]
        found.append(median(f"gamma {gamma:g}: mean wait saved", saved(np.mean), "share", "higher"))
        found.append(median(f"gamma {gamma:g}: median wait saved", saved(np.median), "share", "higher"))
    for gamma, name in ((OLDEST, "first come"), *((gamma, f"gamma {gamma:g}") for gamma in GAMMAS)):
        for what, of in (("mean", np.mean), ("P95", lambda x: np.percentile(x, 95)), ("longest", np.max)):
            found.append(median(f"{name}: {what} wait", [float(of(x)) for x in figures[gamma]], "s", "lower"))
    return found


def define(values: flags.FlagValues) -> None:
    """The flags of the benchmark."""
    flags.DEFINE_enum("size", "", ["", "tiny"], "tiny: a run of seconds", flag_values=values)
    flags.DEFINE_string("json", None, "write the report there too", flag_values=values)


def main(call: Call) -> None:
    """Flags to a run of the benchmark."""
    finish(run(tiny() if call.flags["size"].value else PhaseSplitStudy()), call.flags["json"].value)


PROGRAM = Program("python -m moejax.bench phase_split", SUMMARY, define, main, takes_config=False)
