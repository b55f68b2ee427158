"""Sarathi-Serve: nobody who writes waits for somebody who reads.

Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve (Agrawal et al. 2024, arXiv
2403.02310). Prompts are read in chunks that fill each step up to a budget of tokens; the baseline reads whole
prompts before anybody writes on.

1. On the simulated clock, with a step of 47 ms + 0.18 ms a token as on the paper's machine: lognormal prompts
   (median 1730), half a request a second. The capacity is the highest rate at which P99 TBT keeps the strict
   promise, 5 times a step of 32 writers, and half of the requests wait at most 2 s for their first token.
2. On a small mixture of experts, with pieces of real text as prompts, arrivals at 70% of what the baseline
   can serve, or as a trace has them (lengths divided by 8). Texts have to be the same.

Differs from the paper: the capacity looks at the time to the first token, not at the scheduling delay before
it, which is the harder condition for chunks. On CPU a step's time grows with its rows, so only the tail is
claimed there, and no throughput.
Tested elsewhere: the worked schedule, keys read again and the budget from step times in
tests/serving/schedulers/test_chunked.py, equality of text in tests/contracts/test_scheduler.py.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from moejax.bench import serving_trace
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.report import Bar, Measure, mean, paired_ratio
from moejax.bench.serving_engines import (
    YI_34B,
    Engine,
    Prompts,
    Served,
    alike,
    digits,
    moe,
    simulate,
    untrained,
)
from moejax.bench.serving_outcome import Outcome
from moejax.serving.device import Sizes
from moejax.serving.plan import Scheduler
from moejax.serving.schedulers.chunked import Chunked, profile_budget
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.state import Job

CLAIM = "with chunks P99 TBT is at least 1.5 times shorter, texts are the same, and little throughput is lost"
TAIL, REAL_TAIL = "simulated: TBT P99, prompts first over chunks", "real: TBT P99, prompts first over chunks"
LONGEST = "simulated: longest TBT over a full step"
PACE, REAL_PACE = "simulated: tokens a second over prompts first", "real: tokens a second over prompts first"
CAPACITY = "simulated: capacity over prompts first, strict promise"
SAME = "real: texts that are the same"
BARS = (
    Bar(TAIL, at_least=1.5),
    Bar(LONGEST, at_most=1.2),
    Bar(PACE, at_least=0.75),
    Bar(CAPACITY, at_least=1.5),
    Bar(REAL_TAIL, at_least=1.5),
    Bar(REAL_PACE, at_least=0.75),
    Bar(SAME, at_least=1.0),
)
RATE = 0.5  # requests a second of the simulated load
STRICT = 5 * (YI_34B.fixed + 32 * YI_34B.row)  # s; SLO of the paper
WAIT = 2.0  # s
LOAD = 0.7  # of what the baseline serves
SHRINK = 8  # lengths of a trace, so that its prompts suit a small model


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is served."""

    seeds: int = 5
    requests: int = 400  # of the simulated load
    trial: int = 200  # requests of one trial of the capacity
    real_seeds: int = 3
    real_requests: int = 80
    layers: int = 4
    width: int = 128
    hidden: int = 256
    experts: int = 16
    k: int = 2
    slots: int = 32
    longest: int = 1024  # prompt
    budget: int = 256  # of the real engine


SIZES = {
    "tiny": Settings(
        seeds=3, requests=30, trial=8, real_requests=4, layers=1, width=32, hidden=32, experts=4, slots=4,
        longest=64, budget=16,
    ),
    "default": Settings(),
    "full": Settings(seeds=10, requests=1000, trial=500, real_requests=300, layers=6),
    "gpu": Settings(real_requests=300, layers=12, width=1024, hidden=2048, slots=128, budget=256),
}  # fmt: skip


def measure(settings: Settings, inputs: Inputs) -> Findings:
    """The clock, then the model."""
    arms = [_simulated(settings, seed) for seed in range(settings.seeds)]
    measures, chart = _on_the_clock(settings, arms)
    real, notes = _on_a_model(settings, inputs)
    return Findings((*measures, *real), notes=notes, charts=(chart,))


def _simulated(settings: Settings, seed: int) -> tuple[Outcome, ...]:
    """Prompts first, and two budgets, on the same load."""
    jobs = load(settings.requests, RATE, seed)
    return tuple(simulate(jobs, scheduler) for scheduler in (Fcfs(8192), Chunked(512), Chunked(2048)))


def load(requests: int, rate: float, seed: int) -> list[Job]:
    """Lognormal prompts and outputs that arrive by chance; another rate moves the same requests together."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(np.log(1730), 0.6, requests), 16, 8192).astype(int)
    outputs = np.clip(rng.lognormal(np.log(200), 0.5, requests), 2, 1000).astype(int)
    arrivals = np.cumsum(rng.exponential(1.0, requests)) / rate
    return [
        Job(id, digits(id, prompt), int(output), float(arrival))
        for id, (prompt, output, arrival) in enumerate(zip(prompts, outputs, arrivals, strict=True))
    ]


def _on_the_clock(settings: Settings, arms) -> tuple[list[Measure], Chart]:
    whole, chunked, wide = zip(*arms, strict=True)
    full = YI_34B.seconds((1, 512, 0, 0, 0))
    tails = [[outcome.gap99 for outcome in outcomes] for outcomes in (whole, chunked, wide)]
    firsts = [[float(np.median(outcome.first)) for outcome in outcomes] for outcomes in (whole, chunked)]
    budget = profile_budget(lambda rows: YI_34B.seconds((1, rows, 0, 0, 0)), STRICT)
    schedulers = {"prompts first": Fcfs(8192), f"tau {budget}": Chunked(budget)}
    trials = {
        name: [capacity(settings.trial, scheduler, seed) for seed in range(settings.seeds)]
        for name, scheduler in schedulers.items()
    }
    baseline, method = ([found[0] for found in of] for of in trials.values())
    measures = [
        paired_ratio(TAIL, tails[0], tails[1], "higher"),
        mean(LONGEST, [float(outcome.gaps.max()) / full for outcome in chunked], "x", "lower"),
        paired_ratio(PACE, _pace(chunked), _pace(whole), "higher"),
        paired_ratio(CAPACITY, method, baseline, "higher"),
        mean("simulated: capacity, prompts first", baseline, "requests/s", "higher"),
        mean(f"simulated: capacity, tau {budget}", method, "requests/s", "higher"),
        paired_ratio("simulated: TTFT median over prompts first", *firsts[::-1], "lower"),
        *(mean(f"simulated: TBT P99, {name}", samples, "s", "lower")
          for name, samples in zip(("prompts first", "tau 512", "tau 2048"), tails, strict=True)),
    ]  # fmt: skip
    curves = tuple(Curve(name, *zip(*sorted(of[0][1]), strict=True)) for name, of in trials.items())
    return measures, Chart("the longest waits between tokens", "requests/s", "TBT P99, s", curves)


def capacity(requests: int, scheduler: Scheduler, seed: int) -> tuple[float, list[tuple[float, float]]]:
    """The highest rate that keeps the strict promise, to 2.5%; and P99 TBT at every rate that was tried."""
    low, high, tried = 0.02, 4.0, []
    while high / low > 1.025:
        rate = math.sqrt(low * high)
        outcome = simulate(load(requests, rate, seed), scheduler)
        tried.append((rate, outcome.gap99))
        kept = outcome.gap99 <= STRICT and float(np.median(outcome.first)) <= WAIT
        low, high = (rate, high) if kept else (low, rate)
    return low, tried


def _pace(outcomes: Sequence[Outcome]) -> list[float]:
    return [outcome.tokens / outcome.seconds for outcome in outcomes]


def _on_a_model(settings: Settings, inputs: Inputs) -> tuple[list[Measure], tuple[str, ...]]:
    """Loads in real time on a real engine, seed by seed, every other one backwards."""
    engine, prompts = _engine(settings), Prompts(inputs.text)
    schedulers = _arms(settings)
    everybody = [_jobs(settings, inputs, prompts, seed) for seed in range(settings.real_seeds)]
    crowd = [dataclasses.replace(job, arrival=0.0) for job in everybody[0]]
    for scheduler in schedulers.values():
        engine.serve(crowd[: settings.slots], scheduler)  # compiles
    outcome = engine.serve(crowd, schedulers["prompts first"]).outcome
    rate = LOAD * outcome.requests / outcome.seconds
    served: dict[str, list[Served]] = {name: [] for name in schedulers}
    for seed, jobs in enumerate(everybody):
        span = jobs[-1].arrival or 1.0
        paced = [dataclasses.replace(job, arrival=job.arrival / span * len(jobs) / rate) for job in jobs]
        for name in list(schedulers)[:: 1 if seed % 2 == 0 else -1]:
            served[name].append(engine.serve(paced, schedulers[name]))
    notes = (f"real: {rate:.2f} requests a second, {LOAD:g} of what prompts first serves",)
    return _compared(settings, served), notes


def _arms(settings: Settings) -> dict[str, Scheduler]:
    return {
        "prompts first": Fcfs(settings.longest),
        "chunks": Chunked(settings.budget),
        "small chunks": Chunked(max(settings.budget // 4, settings.slots)),
        "whole prompts beside writers": Chunked(settings.longest),
    }


def _engine(settings: Settings) -> Engine:
    context = 2 * settings.longest
    model = moe(settings.layers, settings.width, settings.hidden, settings.experts, settings.k)
    rows = {settings.slots, max(settings.budget // 4, settings.slots), settings.budget, settings.longest}
    sizes = Sizes(settings.slots, settings.slots * context // 16, 16, tuple(sorted(rows)))
    return Engine(untrained(model, context, seed=0), sizes)


def _jobs(settings: Settings, inputs: Inputs, prompts: Prompts, seed: int) -> list[Job]:
    """A stretch of the trace, or prompts of median 256 with a long tail that arrive by chance."""
    rng, count, most = np.random.default_rng(seed), settings.real_requests, settings.longest
    lengths = np.clip(rng.lognormal(np.log(most / 4), 0.7, count), 4, most).astype(int)
    outputs, arrivals = rng.integers(16, 65, count), np.cumsum(rng.exponential(1.0, count))
    if inputs.trace:
        found = serving_trace.read(inputs.trace[0], count * (seed + 1))[count * seed :]
        lengths = np.clip([request.prompt // SHRINK for request in found], 4, most)
        outputs = np.clip([request.output // SHRINK for request in found], 2, 64)
        arrivals = np.array([request.arrival for request in found]) - found[0].arrival
    pieces = prompts.cut(lengths, seed)
    return [
        Job(id, piece, int(output), float(arrival))
        for id, (piece, output, arrival) in enumerate(zip(pieces, outputs, arrivals, strict=True))
    ]


def _full_step(served: Served, rows: int) -> float:
    """Median seconds of the steps with so many rows, or of all if there are none."""
    full = [result.seconds for result in served.results if len(result.plan.slot_J) == rows]
    return float(np.median(full or [result.seconds for result in served.results]))


def _compared(settings: Settings, served: dict[str, list[Served]]) -> list[Measure]:
    outcomes = {name: [one.outcome for one in of] for name, of in served.items()}
    tails = {name: [outcome.gap99 for outcome in of] for name, of in outcomes.items()}
    firsts = {name: [float(np.median(outcome.first)) for outcome in of] for name, of in outcomes.items()}
    same = [
        alike(*pair)
        for name in served
        for pair in zip(served["prompts first"], served[name], strict=True)
        if name != "prompts first"
    ]
    full = [_full_step(one, settings.budget) for one in served["chunks"]]
    longest = [float(outcome.gaps.max()) for outcome in outcomes["chunks"]]
    first, chunks = "prompts first", "chunks"
    return [
        paired_ratio(REAL_TAIL, tails[first], tails[chunks], "higher"),
        paired_ratio(REAL_PACE, _pace(outcomes[chunks]), _pace(outcomes[first]), "higher"),
        Measure(SAME, min(same), "share", "higher", len(same)),
        paired_ratio("real: longest TBT over a full step", longest, full, "lower"),
        paired_ratio("real: TTFT median over prompts first", firsts[chunks], firsts[first], "lower"),
        *(mean(f"real: TBT P99, {name}", samples, "s", "lower") for name, samples in tails.items()),
        *(mean(f"real: TTFT median, {name}", samples, "s", "lower") for name, samples in firsts.items()),
    ]  # fmt: skip


PAPER = Paper(
    title="Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve (2024, arXiv 2403.02310)",
    claim=CLAIM,
    baseline="whole prompts before anybody writes on",
    bars=BARS,
    sizes=SIZES,
    measure=measure,
)
