"""What the papers of the schedulers promise, each on the load it names, on the simulated clock."""

import dataclasses
import random
import time
from collections.abc import Iterable, Sequence

import numpy as np

from moejax.analysis import machine
from moejax.bench.report import Bar, Measure, Report, median
from moejax.bench.serving_outcome import Outcome, Slo, watch
from moejax.serving.engine import serve
from moejax.serving.pages import Pages
from moejax.serving.plan import Scheduler
from moejax.serving.schedulers.chunked import Chunked
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.schedulers.layered import Layered
from moejax.serving.schedulers.packing import Packing, pack
from moejax.serving.schedulers.shared_prefix import SharedPrefix
from moejax.serving.simulated import Latency, Simulated, Table
from moejax.serving.state import Job, ServeState

LATENCY = Latency(fixed=47e-3, row=0.18e-3)  # Yi-34B on two A100, near enough (arXiv 2403.02310)
TAIL = "chunked: TBT P99 of prompts first over chunks"
LONGEST = "chunked: 1.2 x a full step over the longest TBT"
PACE = "chunked: tokens per second over prompts first"
LOADS = "layered: experts loaded, chunks over groups, E={E} k={k} D={D}"
PACKED = "packing: speed-up over (k / r)"
SAVED = "shared_prefix: tokens saved over the closed form, degree {}"
MEMORY = "shared_prefix: time with 64 slots over memory as limit"
MODELS = ((64, 4, 4), (16, 2, 4), (16, 2, 8))  # E, k, D
DEGREES = (4, 16)
BARS = (
    Bar(TAIL, 1.5),
    Bar(LONGEST, 1.0),
    Bar(PACE, 0.75),
    *(Bar(LOADS.format(E=E, k=k, D=D), 1 / 0.9) for E, k, D in MODELS if D <= 4),
    Bar(PACKED, 0.7),
    *(Bar(SAVED.format(degree), 0.98) for degree in DEGREES),
    Bar(MEMORY, 1.0),
)


@dataclasses.dataclass(frozen=True)
class Claims:
    """How much is served to see them."""

    requests: int = 400  # of the load with arrivals
    prompts: int = 24  # that are read beside writers
    packs: int = 50  # batches that are packed
    documents: int = 40  # that several prompts begin with
    prefix: int = 512  # tokens of a document
    seed: int = 0


def tiny() -> Claims:
    """Seconds of work."""
    return Claims(requests=60, prompts=4, packs=5, documents=6, prefix=128)


def run(cfg: Claims) -> Report:
    """Measure all of them."""
    start = time.monotonic()
    measures = [*tail(cfg), *loads(cfg), *packed(cfg), *saved(cfg), *memory(cfg)]
    return Report(
        name="what schedulers promise",
        claim="the direction of each paper's headline: Sarathi-Serve, layered prefill, prepacking, BatchLLM",
        source="a simulated clock, drawn routing, prompts of drawn lengths",
        settings=dataclasses.asdict(cfg) | {"latency": dataclasses.asdict(LATENCY)},
        baseline="prompts first; chunks of equal steps; a prompt a step; no sharing",
        measures=tuple(measures),
        bar=BARS,
        machine=machine.describe(),
        seconds=time.monotonic() - start,
        notes=(
            "texts do not depend on the scheduler: tests/contracts/test_scheduler.py",
            "a step of packing costs its rows, idle ones included; chunks would fill every row of it",
        ),
    )


def tail(cfg: Claims) -> list[Measure]:
    """Sarathi-Serve: lognormal prompts (median 1730) and outputs, half a request a second."""
    rng = np.random.default_rng(cfg.seed)
    prompts = np.clip(rng.lognormal(np.log(1730), 0.6, cfg.requests), 16, 8192).astype(int)
    outputs = np.clip(rng.lognormal(np.log(200), 0.5, cfg.requests), 2, 1000).astype(int)
    arrivals = np.cumsum(rng.exponential(2.0, cfg.requests))
    jobs = [
        Job(id, _text(id, prompt), int(output), float(arrival))
        for id, (prompt, output, arrival) in enumerate(zip(prompts, outputs, arrivals, strict=True))
    ]
    whole, *budgets = (_serve(jobs, scheduler) for scheduler in (Fcfs(8192), Chunked(512), Chunked(2048)))
    chunked, full = budgets[0], LATENCY.fixed + 512 * LATENCY.row
    return [
        Measure(TAIL, whole.gap99 / chunked.gap99, "x", "higher", len(whole.gaps)),
        Measure(LONGEST, 1.2 * full / float(chunked.gaps.max()), "x", "higher", len(chunked.gaps)),
        Measure(PACE, whole.seconds / chunked.seconds, "x", "higher"),
        *(
            measure
            for name, outcome in zip(("prompts first", "tau 512", "tau 2048"), (whole, *budgets), strict=True)
            for measure in outcome.measures(name)[:5]
        ),
    ]


def loads(cfg: Claims) -> list[Measure]:
    """Layered prefill: prompts of 512 in chunks of 64 or 8 groups of layers, while D requests write."""
    found = []
    for E, k, D in MODELS:
        for power, name in ((1.0, ""), (0.0, ", all alike")):
            ratio = _steps_loads(cfg, Chunked(64 + D), (E, k, D, power)) / _steps_loads(
                cfg, Layered(unit=64), (E, k, D, power)
            )
            found.append(Measure(LOADS.format(E=E, k=k, D=D) + name, ratio, "x", "higher", cfg.prompts))
    return found


def _steps_loads(cfg: Claims, scheduler: Scheduler, model: tuple[int, int, int, float]) -> int:
    """Experts loaded by the steps that read one of the prompts."""
    E, k, D, power = model
    layers, length, steps = 8, 512, 12 * cfg.prompts
    writers = [Job(id, (id,), steps) for id in range(D)]
    readers = [Job(D + i, _text(D + i, length), 1, 5 + 11.0 * i) for i in range(cfg.prompts)]
    state = ServeState(D + 1, Pages((steps * D + 2 * length) // 16 + D, 16, sharing=False), layers)
    executor = Simulated(Latency(fixed=1.0), layers, Table.zipf(layers, E, k, power, cfg.seed))
    results = (step.result for step in serve([*writers, *readers], scheduler, executor, state, ahead=0))
    return sum(
        result.expert_loads
        for result in results
        if any(work.run.job.id >= D for work in result.plan.works) and len(result.plan.works) == D + 1
    )


def packed(cfg: Claims) -> list[Measure]:
    """Prepacking: 16 prompts of very different lengths, steps as long as the longest."""
    rng = np.random.default_rng(cfg.seed)
    speed, bins = [], []
    for _ in range(cfg.packs):
        lengths = np.clip(rng.lognormal(np.log(55), 0.9, 16), 1, 1000).astype(int).tolist()
        rows = max(lengths)
        jobs = [Job(id, _text(id, length), 1) for id, length in enumerate(lengths)]
        apart = _serve(jobs, Fcfs(rows), slots=1, sizes=(rows,)).seconds
        together = _serve(jobs, Packing(rows), slots=16, sizes=(rows,)).seconds
        bins.append(16 / len(pack(lengths, rows)))
        speed.append(apart / together)
    relative = [fast / bound for fast, bound in zip(speed, bins, strict=True)]
    return [median(PACKED, relative, "x", "higher"), median("packing: k / r", bins, "x")]


def _documents(cfg: Claims, degree: int) -> list[Job]:
    """Prompts of which every `degree` begin with one document, shuffled."""
    prompts = [
        (*_text(document, cfg.prefix), *_text(question, cfg.prefix // 8))
        for document in range(cfg.documents)
        for question in range(document * degree, (document + 1) * degree)
    ]
    random.Random(cfg.seed).shuffle(prompts)
    return [Job(id, prompt, 64) for id, prompt in enumerate(prompts)]


def saved(cfg: Claims) -> list[Measure]:
    """BatchLLM: a cache that holds a few documents, and prompts in no order."""
    found = []
    for degree in DEGREES:
        jobs = _documents(cfg, degree)
        P, d = cfg.prefix, cfg.prefix // 8
        closed = 1 - (P + degree * d) / (degree * (P + d))
        shares = []
        for scheduler in (SharedPrefix(2048), Chunked(2048)):
            outcome = _serve(jobs, scheduler, slots=8, cache=10 * (P + d + 64))
            shares.append(outcome.found_tokens / outcome.prompt_tokens)
        grouped, arrival = shares
        found += [
            Measure(SAVED.format(degree), grouped / closed, "x", "higher", len(jobs)),
            Measure(f"shared_prefix: tokens saved, degree {degree}", grouped, "share", "higher", len(jobs)),
            Measure(
                f"in order of arrival: tokens saved, degree {degree}", arrival, "share", "higher", len(jobs)
            ),
        ]
    return found


def memory(cfg: Claims) -> list[Measure]:
    """BatchLLM: as many requests as the cache holds, against a fixed number."""
    jobs = _documents(cfg, 16)
    limited, free = (_serve(jobs, SharedPrefix(2048), slots, cache=60_000) for slots in (64, 512))
    return [Measure(MEMORY, limited.seconds / free.seconds, "x", "higher", len(jobs))]


def _serve(
    jobs: Iterable[Job],
    scheduler: Scheduler,
    slots: int = 128,
    cache: int = 2**19,
    sizes: Sequence[int] = (),
) -> Outcome:
    state = ServeState(slots, Pages(cache // 16, 16), num_layers=48)
    executor = Simulated(LATENCY, 48, sizes=sizes)
    return watch(serve(jobs, scheduler, executor, state, ahead=0), Slo(5.0, 0.2))


def _text(name: int, length: int) -> tuple[int, ...]:
    """Tokens that tell their name at once."""
    return (name % 251, name // 251, *(0,) * int(length - 2))[:length]
