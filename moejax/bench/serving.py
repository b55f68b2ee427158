"""Schedulers on a trace of real requests, replayed on the simulated executor.

The clock is a model of latency, given or fitted to measured steps, so every figure repeats exactly and no
device is needed. What the schedulers' papers promise, each on the load it names, is measured by
`python -m moejax.bench run sarathi_serve layered_prefill prepacking batchllm`.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable

from absl import flags

from moejax.analysis import machine
from moejax.bench import serving_trace
from moejax.bench.report import Bar, Measure, Report
from moejax.bench.run import finish
from moejax.bench.serving_outcome import Outcome, Slo, watch
from moejax.config import require
from moejax.errors import UsageError
from moejax.flags import Call, Program
from moejax.records import suggest
from moejax.serving.engine import serve
from moejax.serving.pages import Pages
from moejax.serving.plan import Scheduler
from moejax.serving.schedulers.chunked import Chunked
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.schedulers.layered import Layered
from moejax.serving.schedulers.packing import Packing
from moejax.serving.schedulers.shared_prefix import SharedPrefix
from moejax.serving.simulated import Latency, Simulated, Table
from moejax.serving.state import ServeState

LONGEST = 8192  # rows of a step that reads whole prompts
SCHEDULERS: dict[str, Callable[[int], Scheduler]] = {
    "fcfs": lambda budget: Fcfs(max_rows=LONGEST),
    "chunked": lambda budget: Chunked(budget),
    "layered": lambda budget: Layered(unit=budget, cap=LONGEST),
    "packing": lambda budget: Packing(capacity=LONGEST),
    "shared_prefix": lambda budget: SharedPrefix(budget),
}
LATENCIES = {
    # Qwen3-30B-A3B on H100. Experts are 9.4 MB each; a prompt of 8192 loads 764 GB of them in 312 ms in
    # chunks of 512, at once 57 GB in 76 ms (arXiv 2510.08055). Keys of 98 kB at 3 TB/s; the rest is an
    # estimate.
    "qwen3-30b-h100": Latency(fixed=5e-3, row=7e-6, expert=3.15e-6, key=33e-9, pair=2e-9),
    # Yi-34B on two A100: 4 writers take 68 ms, 1021 read and 3 written tokens 217.6 ms (arXiv 2403.02310).
    "yi-34b-a100x2": Latency(fixed=67.4e-3, row=0.147e-3),
}
TAIL, PACE = "TBT P99 of fcfs over chunked", "tokens written per second, chunked over fcfs"
CLAIM = "with chunks the longest waits between tokens are 1.5 times shorter, and little throughput is lost"
SUMMARY = """
Replay a trace of requests against schedulers on a simulated clock.

    python -m moejax.bench serving --trace=azure_llm_code_2023.csv --scheduler=all
"""


@dataclasses.dataclass(frozen=True)
class Replay:
    """What to replay, where, and how fast."""

    trace: str  # path
    schedulers: tuple[str, ...] = tuple(SCHEDULERS)
    requests: int = 1000  # of the trace, from its beginning
    speed: float = 1.0  # of arrivals
    budget: int = 512  # tokens of a step, or of a cohort and group of layers
    latency: Latency = LATENCIES["qwen3-30b-h100"]
    slo: Slo = Slo(ttft=5.0, tbt=0.125)
    slots: int = 256
    cache: int = 2**18  # positions
    page_size: int = 16
    layers: int = 48
    experts: int = 128
    k: int = 8
    skew: float = 1.0  # of experts' popularity; 0 = all alike

    def __post_init__(self):
        for name in ("requests", "speed", "budget", "slots", "page_size", "layers"):
            require(getattr(self, name) > 0, f"--{name}={getattr(self, name)} must be above 0")
        for name in self.schedulers:
            known = ", ".join((*SCHEDULERS, "all"))
            require(
                name in SCHEDULERS,
                f"--scheduler={name} is unknown{suggest(name, SCHEDULERS)}; known: {known}",
            )


def run(cfg: Replay) -> Report:
    """Serve the same requests with every scheduler."""
    start = time.monotonic()
    requests = serving_trace.read(cfg.trace, cfg.requests, cfg.speed)
    fitting = [r for r in requests if r.prompt + r.output - 1 <= cfg.cache]
    require(len(fitting) > 0, f"no request of {cfg.trace} fits into a cache of {cfg.cache} positions")
    outcomes = {name: replay(cfg, SCHEDULERS[name](cfg.budget), fitting) for name in cfg.schedulers}
    measures = [measure for name, outcome in outcomes.items() for measure in outcome.measures(name)]
    notes = [f"{len(requests) - len(fitting)} requests are larger than the cache and were left out"]
    settings = {name: x for name, x in dataclasses.asdict(cfg).items() if name not in ("trace", "schedulers")}
    return Report(
        name="schedulers on a trace",
        claim=CLAIM,
        source="a simulated clock; tokens as the trace counts them",
        settings={"trace": pathlib.Path(cfg.trace).name} | settings,
        baseline="prompts first, whole, as they come (fcfs)",
        measures=tuple(_compared(outcomes) + measures),
        bar=(Bar(TAIL, 1.5), Bar(PACE, 0.75)),
        machine=machine.describe(),
        seconds=time.monotonic() - start,
        notes=tuple(notes) if len(requests) > len(fitting) else (),
    )


def replay(cfg: Replay, scheduler: Scheduler, requests: list[serving_trace.Request]) -> Outcome:
    """Serve requests of a trace with one scheduler."""
    state = ServeState(cfg.slots, Pages(cfg.cache // cfg.page_size, cfg.page_size), cfg.layers)
    routing = Table.zipf(cfg.layers, cfg.experts, cfg.k, cfg.skew, tokens=1024) if cfg.experts else None
    executor = Simulated(cfg.latency, cfg.layers, routing)
    return watch(serve(serving_trace.jobs(requests), scheduler, executor, state), cfg.slo)


def _compared(outcomes: dict[str, Outcome]) -> list[Measure]:
    """What the claim is about, if both were replayed."""
    if not {"fcfs", "chunked"} <= outcomes.keys() or not len(outcomes["chunked"].gaps):
        return []
    whole, chunked = outcomes["fcfs"], outcomes["chunked"]
    pace = (chunked.tokens / chunked.seconds) / (whole.tokens / whole.seconds)
    return [
        Measure(TAIL, whole.gap99 / chunked.gap99, "x", "higher", len(chunked.gaps)),
        Measure(PACE, pace, "x", "higher"),
        Measure("TBT max of fcfs over chunked", whole.gaps.max() / chunked.gaps.max(), "x", "higher"),
    ]


def latency_of(text: str) -> Latency:
    """By name, or from a JSON file with the fields of `Latency`."""
    if text in LATENCIES:
        return LATENCIES[text]
    path = pathlib.Path(text)
    known = ", ".join(LATENCIES)
    require(path.suffix == ".json", f"--latency={text} is neither one of {known} nor a .json file")
    try:
        return Latency(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        fields = ", ".join(field.name for field in dataclasses.fields(Latency))
        raise UsageError(
            f"{text} must be a JSON object with seconds for any of {fields} ({error})"
        ) from error


def define(values: flags.FlagValues) -> None:
    """The flags of the benchmark."""
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("trace", "", "path of a trace: Azure's .csv or Mooncake's .jsonl", flag_values=values)
    flags.DEFINE_list("scheduler", ["all"], f"of {', '.join(SCHEDULERS)}", flag_values=values)
    text("latency", "qwen3-30b-h100", f"{', '.join(LATENCIES)}, or a .json file", flag_values=values)
    for name, meaning in (
        ("requests", "of the trace, from its beginning"),
        ("budget", "tokens of a step (chunked, shared_prefix), or per group of layers (layered)"),
        ("slots", "requests that run at once"),
        ("cache", "positions"),
        ("layers", "of the model"),
        ("experts", "of a layer; 0 = a dense model"),
        ("k", "experts of a token"),
    ):
        number(name, _DEFAULT[name], meaning, lower_bound=0, flag_values=values)
    real = flags.DEFINE_float
    real("speed", 1.0, "of arrivals; 2 = twice the load", flag_values=values)
    real("skew", _DEFAULT["skew"], "of experts' popularity; 0 = all alike", flag_values=values)
    real("ttft", 5.0, "promised seconds to the first token", flag_values=values)
    real("tbt", 0.125, "promised seconds between tokens", flag_values=values)
    text("json", None, "write the report there too", flag_values=values)


_DEFAULT = {field.name: field.default for field in dataclasses.fields(Replay)}


def main(call: Call) -> None:
    """Flags to a run of the benchmark."""
    values = {name: call.flags[name].value for name in call.flags}
    require(bool(values["trace"]), "give --trace=FILE (Azure's .csv or Mooncake's .jsonl)")
    names = tuple(values["scheduler"])
    cfg = Replay(
        schedulers=tuple(SCHEDULERS) if names == ("all",) else names,
        latency=latency_of(values["latency"]),
        slo=Slo(values["ttft"], values["tbt"]),
        **{name: values[name] for name in ("trace", "requests", "speed", "budget", "slots", "cache")},
        **{name: values[name] for name in ("layers", "experts", "k", "skew")},
    )
    finish(run(cfg), values["json"])


def tiny(trace: str) -> Replay:
    """A few requests on a small machine."""
    small = {"slots": 8, "cache": 2**12, "layers": 4, "experts": 16, "k": 2, "budget": 64}
    return Replay(trace, requests=20, latency=Latency(fixed=0.01, row=1e-4, expert=1e-5), **small)


PROGRAM = Program("python -m moejax.bench serving", SUMMARY, define, main, takes_config=False)
