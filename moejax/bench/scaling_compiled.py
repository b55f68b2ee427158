"""One train step compiled ahead of time for slices of TPUs that are not here.

libtpu compiles it on any machine (`pip install 'moejax[tpu]'`, `JAX_PLATFORMS=cpu`), down to the code that
the chips would run: what it says of memory is what they would need. Nothing is measured on a chip.
"""

import dataclasses
import itertools
import math
import operator
import os
import time
from collections.abc import Iterator

import jax
from jax.experimental import topologies

from moejax.analysis import flops
from moejax.attention.gqa import Gqa
from moejax.bench.report import Measure
from moejax.bench.scaling_rows import Row
from moejax.config import BlockConfig, Group, MeshConfig, ModelConfig, Run, TrainConfig
from moejax.dispatch.cells import FixedCell
from moejax.ffn.moe import Moe
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK
from moejax.training import program as training_program

# libtpu would ask the cloud what machine this is, and lets one process at a time have the chips.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
RECOMPUTED = {"none": 1.0, "dots": 1.0, "full": 4 / 3}  # products computed per product needed, by model.remat


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip in the numbers of Google Cloud's documentation."""

    memory: float  # bytes of HBM
    flops: float  # bfloat16, per second
    bandwidth: float  # of HBM, bytes per second
    links: float  # to other chips, all together, bytes per second


CHIPS = {
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9),
    "v6e": Chip(32 * 2**30, 918e12, 1640e9, 448e9),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips, and how a run lies on them."""

    topology: str  # v5e:16x16
    mesh: MeshConfig

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.topology.partition(":")[2].split("x")))

    @property
    def chip(self) -> Chip:
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def name(self) -> str:
        return f"compiled {self.topology}"


def slices(names: str, most: int = 16) -> tuple[Slice, ...]:
    """Slices by comma-separated topologies: whole experts over up to `most` chips, all over the others.

    Experts take whole dimensions of the topology, the first ones, as many as are not too large together.
    """
    found = []
    for name in names.split(","):
        sizes = [int(size) for size in name.partition(":")[2].split("x")]
        products = itertools.accumulate(sizes, operator.mul, initial=1)
        expert = max(product for product in products if product <= most)
        found.append(Slice(name, MeshConfig(fsdp=math.prod(sizes) // expert, expert=expert)))
    return tuple(found)


def large(chips: int) -> Run:
    """A model as large as Qwen3-30B-A3B (arXiv 2505.09388), 4096 tokens per chip, experts with capacity."""
    attn = Gqa(num_heads=32, num_kv_heads=4, head_width=128, rope_theta=1e6, qk_norm="head")
    ffn = Moe(128, 768, Linear(), TopK(8), FixedCell(capacity_factor=1.25))
    model = ModelConfig(
        vocab=151936,
        width=2048,
        groups=(Group((BlockConfig(attn, ffn),), 48),),
        tied=False,
        dtype="bfloat16",
        remat="full",
    )
    return _run("30B", model, chips, 4096)


def tiny(chips: int) -> Run:
    """Two narrow layers, which compile in seconds."""
    ffn = Moe(8, 256, Linear(), TopK(2), FixedCell(capacity_factor=1.25))
    block = BlockConfig(Gqa(num_heads=2, num_kv_heads=1, head_width=128), ffn)
    model = ModelConfig(vocab=1024, width=256, groups=(Group((block,), 2),), dtype="bfloat16")
    return _run("tiny", model, chips, 256)


def _run(name: str, model: ModelConfig, chips: int, seq_len: int) -> Run:
    from configs import base

    return Run(name, model, TrainConfig(steps=1000, batch_rows=chips, seq_len=seq_len, losses=base.losses()))


def rows(wanted: tuple[Slice, ...], recipe) -> Iterator[Row]:
    """Every slice's figures, or why there are none.

    Args:
      wanted: to compile for, one after the other.
      recipe: number of chips -> Run.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for one in wanted:
        try:
            yield Row(one.name, _figures(one, dataclasses.replace(recipe(one.chips), mesh=one.mesh)))
        except (RuntimeError, ValueError, NotImplementedError) as error:  # what XLA, Mosaic and libtpu raise
            yield Row(one.name, (), failure=str(error).strip().partition("\n")[0][:300])


def _figures(one: Slice, run: Run) -> tuple[Measure, ...]:
    topology = topologies.get_topology_desc(platform="tpu", topology_name=one.topology)
    program = training_program.build(run, topology.devices)
    begin = time.monotonic()
    with program.mesh_context():
        # What tests themselves run is compiled quickly; this as it would run.
        lowered = program.jit_step().lower(program.abstract_state(), program.abstract_batch())
        compiled = lowered.compile({"xla_backend_optimization_level": 3})
    seconds = time.monotonic() - begin
    cost = flops.count(compiled)
    needed = program.flops_per_step / one.chips
    figure = lambda name, value, unit: Measure(f"{one.name}: {name}", float(value), unit, "lower")
    found = [
        figure("memory per chip", cost.peak_memory, "bytes"),
        figure("FLOPs per chip", needed, "FLOP"),
        figure("through memory per chip", cost.bytes, "bytes"),
        *(figure(f"{kind} per chip", n, "bytes") for kind, n in sorted(cost.collective_bytes.items())),
        *(figure(f"roofline, {part}", value, "s") for part, value in _roofline(one.chip, cost, needed, run)),
        figure("compiled in", seconds, "s"),
        Measure(f"{one.name}: memory of a chip / needed", one.chip.memory / cost.peak_memory, "x", "higher"),
    ]
    said = _compilers_estimate(compiled)
    return (*found, figure("compiler's estimate", said, "s")) if said else tuple(found)


def _roofline(chip: Chip, cost: flops.Cost, needed: float, run: Run) -> list[tuple[str, float]]:
    """Seconds of a step if one of three things took all the time, at the rates that the vendor states."""
    return [
        ("products", needed * RECOMPUTED[run.model.remat] / chip.flops),
        ("memory", cost.bytes / chip.bandwidth),
        ("links", sum(cost.collective_bytes.values()) / chip.links),
    ]


def _compilers_estimate(compiled) -> float | None:
    """Seconds that XLA expects; None where it says nothing sensible, as it knows no cost of kernels."""
    said = (compiled.cost_analysis() or {}).get("optimal_seconds", 0.0)
    return said if said > 0 else None


def describe(run: Run) -> dict[str, str]:
    """The run for people to read."""
    model = run.model
    block = model.groups[0].blocks[0]
    return {
        "model": f"{model.num_layers} layers, width {model.width}, {block.ffn.selector.num_slots} of "
        f"{block.ffn.num_experts} experts of width {block.ffn.hidden}, vocabulary {model.vocab:,}, "
        f"{model.dtype}, parameters and optimizer in {model.param_dtype}, recomputed: {model.remat}",
        "batch": f"one row of {run.train.seq_len} tokens per chip",
        "dispatch": repr(block.ffn.dispatch),
        "versions": f"jax {jax.__version__}",
    }
