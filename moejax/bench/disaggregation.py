"""Prefill and decoding on devices of their own against devices that do both, in requests served in time.

DistServe (Zhong et al. 2024, arXiv 2401.09670). Simulated with its published fits of OPT-13B on A100s, so
that the figures repeat exactly: no engine runs, and nothing is said of this machine.
"""

import dataclasses
import time

import numpy as np
from absl import flags

from moejax.analysis import machine, pool_planner
from moejax.analysis.pool_latency import DecodeTime, Latency, PrefillTime
from moejax.analysis.pool_planner import Cluster, Slo, goodput
from moejax.analysis.pool_records import Requests, draw
from moejax.analysis.pool_simulator import simulate, simulate_colocated
from moejax.bench.report import Bar, Measure, Report, median
from moejax.bench.run import finish
from moejax.config import require
from moejax.flags import Call, Program

SUMMARY = """
Compare goodput per device of prefill and decode pools with that of devices that do both, simulated.

    python -m moejax.bench disaggregation --json=results/disaggregation.json
    python -m moejax.bench disaggregation --size=tiny
"""
OPT_13B = Latency(
    PrefillTime(18.1025e-3, 0.101912e-3, 7.1223e-9), DecodeTime(19.9347e-3, 6.2694e-7, 0.038507e-3)
)
# 80 GB, weights of 26 GB, keys and values in float16, NVLink as DistServe's A100s have it.
A100 = Cluster(1, 8, 80e9, 26e9, pool_planner.kv_bytes(40, 40, 128), bandwidth=300e9)
TTFT, TIGHT, LEAST = 0.25, 0.03, 1.15  # s, s, x
COUNTS = ((1, 1), (2, 1), (3, 1), (1, 2), (1, 3))  # prefill to decode instances
CLAIM = (
    f"with {TIGHT * 1e3:g} ms per token, 1.5 times what decoding takes unloaded, the best split serves "
    f"{LEAST:g} times as many requests per device as devices that read before they write, or more"
)


@dataclasses.dataclass(frozen=True)
class Disaggregation:
    """What to simulate."""

    targets: tuple[float, ...] = (0.1, 0.04, TIGHT)  # s per token
    requests: int = 500
    seeds: int = 5
    eps: float = 0.02  # relative precision of goodputs


def tiny() -> Disaggregation:
    """Seconds."""
    return Disaggregation(targets=(TIGHT,), requests=60, seeds=3, eps=0.1)


def chat(count: int, seed: int) -> Requests:
    """Prompts around 300 and answers around 150 tokens, lognormal, no longer than 1500 and 1000."""
    rng = np.random.default_rng(seed)
    sizes = np.array([300, 150]) * np.exp(np.array([1.0, 0.8]) * rng.normal(size=(count, 2)))
    return draw(np.clip(np.rint(sizes), 1, (1500, 1000)).astype(int), count, seed)


def run(cfg: Disaggregation) -> Report:
    """Search every target's best split, with several draws of requests."""
    start = time.monotonic()
    measures: list[Measure] = []
    for target in cfg.targets:
        found = [_compare(chat(cfg.requests, seed), Slo(TTFT, target), cfg) for seed in range(cfg.seeds)]
        measures += _measures(f"{target * 1e3:g} ms", found)
    return Report(
        name="prefill and decode on devices of their own",
        claim=CLAIM,
        source="simulated, with published fits of OPT-13B on A100s; no engine runs",
        settings={
            "targets": f"first token within {TTFT:g} s and the time per token named, for 90% of requests",
            "requests": f"{cfg.requests} per draw, {cfg.seeds} draws, Poisson arrivals",
            "splits": ", ".join(f"{p}:{d}" for p, d in COUNTS),
        },
        baseline="one device that reads waiting prompts before it writes, per device",
        measures=tuple(measures),
        bar=(Bar(f"{TIGHT * 1e3:g} ms: split / colocated", LEAST),),
        machine=machine.describe(),
        seconds=time.monotonic() - start,
        notes=("where the target is loose, splitting may lose: both directions are reported",),
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """Of one draw of requests, at one target."""

    colocated: float  # requests per second and device
    split: float
    prefill: int  # instances, to
    decode: int
    slower: float  # P99 of the time per token, colocated / split, where both serve what colocated can


def _compare(requests: Requests, slo: Slo, cfg: Disaggregation) -> _Found:
    instance = A100.instance(OPT_13B, 1, 1)
    together = lambda sent: simulate_colocated(instance, sent, A100.saturation)
    colocated = goodput(together, requests, slo, cfg.eps)
    require(colocated > 0, f"no device meets {slo} at any rate")
    best = pool_planner.search_counts(A100, (instance, instance), COUNTS, requests, slo)
    pools = A100.pools(best.prefill, best.decode, (best.num_prefill, best.num_decode))
    tails = (
        np.percentile(together(requests.at_rate(colocated)).tpot, 99),
        np.percentile(simulate(pools, requests.at_rate(colocated * pools.devices)).tpot, 99),
    )
    return _Found(colocated, best.per_device, best.num_prefill, best.num_decode, float(tails[0] / tails[1]))


def _measures(name: str, found: list[_Found]) -> list[Measure]:
    return [
        median(f"{name}: split / colocated", [one.split / one.colocated for one in found], "x", "higher"),
        median(f"{name}: colocated", [one.colocated for one in found], "requests/s/device", "higher"),
        median(f"{name}: split", [one.split for one in found], "requests/s/device", "higher"),
        median(f"{name}: prefill instances per decode", [one.prefill / one.decode for one in found], "ratio"),
        median(f"{name}: P99 per token, colocated / split", [one.slower for one in found], "x", "higher"),
    ]


def define(values: flags.FlagValues) -> None:
    """The flags of the benchmark."""
    flags.DEFINE_enum("size", "", ["", "tiny"], "tiny: a run of seconds", flag_values=values)
    flags.DEFINE_string("json", None, "write the report there too", flag_values=values)


def main(call: Call) -> None:
    """Flags to a run of the benchmark."""
    finish(run(tiny() if call.flags["size"].value else Disaggregation()), call.flags["json"].value)


PROGRAM = Program("python -m moejax.bench disaggregation", SUMMARY, define, main, takes_config=False)
