"""Kernel speed: grouped products, the whole layer and attention, beside peers and beside bounds that cheat.

A grouped product is held against one dense product of as many FLOPs, which need not look whose row it has;
the layer against a dense one in which a token passes as many weights.
"""

import dataclasses
import re
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from absl import flags

from moejax.analysis import machine
from moejax.bench import attention_contests, grouped_contests, layer_contests
from moejax.bench.contest import Contest, hold
from moejax.bench.report import Bar, Measure, Report
from moejax.bench.run import finish
from moejax.errors import UsageError
from moejax.flags import Call, Program
from moejax.host_memory import keep_pages
from pallas_kernels import implementations
from pallas_kernels.grouped_matmul import shapes

SUMMARY = """
Measure kernels in GFLOP/s beside peers and dense products.

    python -m moejax.bench kernels --json=results/kernels.json
    python -m moejax.bench kernels --only=forward --rounds=3
    python -m moejax.bench kernels --size=tiny
"""
CLAIM = (
    "grouped products run near the rate of a dense one however rows are spread, "
    "and a layer of many experts costs little more than a dense layer of as many active weights"
)
BASELINE = (
    "a dense product of equal FLOPs; lax.ragged_dot; tokamax, megablox and jax's examples where they run"
)
# What is asked where, by platform; GFLOP/s where no ratio is named, for one H100.
BARS = {
    "cpu": (
        Bar("layer many_experts: needed / walked FLOPs", 1 / 1.25),
        Bar("layer many_experts: 256 MiB / temporaries", 1.0),
        Bar("layer many_experts: moejax / ragged_dot", 30.0),
        Bar("layer many_experts: moejax / dense", 1 / 2.5),
        Bar("forward small_up zipf: moejax / dense", 0.8),
    ),
    "cuda": (
        Bar("forward mixtral_8x7b uniform: moejax", 600e3),
        Bar("forward qwen3_30b_a3b uniform: moejax", 500e3),
        Bar("forward deepseek_v3_half uniform: moejax", 500e3),
        Bar("dlhs mixtral_8x7b uniform: moejax", 450e3),
        Bar("dlhs qwen3_30b_a3b uniform: moejax", 450e3),
        Bar("dlhs deepseek_v3_half uniform: moejax", 450e3),
        Bar("drhs mixtral_8x7b uniform: moejax", 500e3),
        Bar("drhs qwen3_30b_a3b uniform: moejax", 500e3),
        Bar("drhs deepseek_v3_half uniform: moejax", 500e3),
        Bar("layer olmoe_1b_7b: moejax / dense", 0.45),
        Bar("layer mixtral_8x7b: moejax / dense", 0.45),
    ),
    "tpu": (),
}


@dataclasses.dataclass(frozen=True)
class KernelSpeed:
    """What to measure, how often."""

    grouped: tuple[shapes.GroupedShape, ...]
    layers: tuple[layer_contests.LayerShape, ...]
    attention: tuple[attention_contests.AttentionShape, ...]
    dtype: str
    bars: tuple[Bar, ...]
    only: str = ""  # a regular expression that names of contests must match
    rounds: int = 5
    least_seconds: float = 0.05  # of a sample


def here() -> KernelSpeed:
    """The sizes that make sense on this platform."""
    platform = implementations.platform()
    bars = BARS[platform]
    if platform == "cpu":
        grouped = (*shapes.SMALL, *shapes.MANY_EXPERTS)
        layers = (layer_contests.MANY_EXPERTS,)
        return KernelSpeed(grouped, layers, attention_contests.SMALL, "float32", bars)
    published = [shape for shape in shapes.PUBLISHED if shape.name != "deepseek_v3"]
    return KernelSpeed(
        tuple(published), layer_contests.PUBLISHED, attention_contests.PUBLISHED, "bfloat16", bars
    )


def tiny() -> KernelSpeed:
    """Seconds, most of them to compile; its figures mean nothing."""
    layer = layer_contests.LayerShape("tiny", T=16, D=8, F=4, E=4, K=2)
    return KernelSpeed(
        (shapes.TINY[0],), (layer,), attention_contests.TINY, "float32", (), rounds=2, least_seconds=0.0
    )


def run(cfg: KernelSpeed) -> Report:
    """Hold the contests one after the other; operands live as long as their contest."""
    start = time.monotonic()
    measures, notes = [], []
    for contest in _contests(cfg):
        outcome = hold(contest, cfg.rounds, cfg.least_seconds)
        measures += outcome.measures()
        notes += outcome.notes()
    for shape in cfg.layers:
        if _wanted(cfg, f"layer {shape.name}"):
            measures += layer_contests.counted(shape, jnp.dtype(cfg.dtype))
    rate = machine.matmul_rate(cfg.dtype, repeats=3)
    measures.append(Measure("square matmul", rate / 1e9, "GFLOP/s", "neither"))
    return Report(
        name="kernel speed",
        claim=CLAIM,
        source=f"the implementations that serve by default, {cfg.dtype}",
        settings={
            "rounds": f"{cfg.rounds}, each sample {cfg.least_seconds:g} s or more",
            "jax": jax.__version__,
        },
        baseline=BASELINE,
        measures=tuple(measures),
        bar=cfg.bars,
        machine=machine.describe(),
        seconds=time.monotonic() - start,
        notes=tuple(notes),
    )


def _contests(cfg: KernelSpeed) -> Iterator[Contest]:
    dtype = jnp.dtype(cfg.dtype)
    found = (
        *grouped_contests.contests(cfg.grouped, dtype),
        *(layer_contests.contest(shape, dtype) for shape in cfg.layers),
        *attention_contests.contests(cfg.attention, dtype),
    )
    return (contest for contest in found if _wanted(cfg, contest.name))


def _wanted(cfg: KernelSpeed, name: str) -> bool:
    return re.search(cfg.only, name) is not None


def define(values: flags.FlagValues) -> None:
    """The flags of the benchmark."""
    text = flags.DEFINE_string
    text("size", "", "tiny: a run of seconds that shows that everything works", flag_values=values)
    text("only", "", "contests whose names match this regular expression", flag_values=values)
    flags.DEFINE_integer("rounds", 5, "samples of every contestant", lower_bound=1, flag_values=values)
    text("json", None, "write the report there too", flag_values=values)


def main(call: Call) -> None:
    """Flags to a run of the benchmark."""
    keep_pages()  # as train.py does
    values = {name: call.flags[name].value for name in ("size", "only", "rounds", "json")}
    if values["size"] not in ("", "tiny"):
        raise UsageError(f"--size={values['size']} is not a size; --size=tiny, or none")
    try:
        re.compile(values["only"])
    except re.error as error:
        raise UsageError(f"--only={values['only']} is no regular expression: {error}") from error
    cfg = tiny() if values["size"] else dataclasses.replace(here(), rounds=values["rounds"])
    cfg = dataclasses.replace(cfg, only=values["only"])
    if not any(True for _ in _contests(cfg)):
        names = ", ".join(contest.name for contest in _contests(dataclasses.replace(cfg, only="")))
        raise UsageError(f"--only={values['only']} matches no contest; there are: {names}")
    finish(run(cfg), values["json"])


PROGRAM = Program("python -m moejax.bench kernels", SUMMARY, define, main, takes_config=False)
