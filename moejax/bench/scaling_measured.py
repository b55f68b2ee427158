"""Train steps on real text over 1 to 8 virtual CPU devices: measured, and counted in the compiled programs.

Virtual devices share the cores, so no layout can be faster than one device that does the same work; what is
measured is how much slower it is, the overhead. What scales is counted: the work and bytes of each device.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax

from moejax.analysis import flops
from moejax.attention.gqa import Gqa
from moejax.bench.report import Measure, median
from moejax.bench.rounds import interleave
from moejax.bench.scaling_rows import Row
from moejax.config import DataConfig, MeshConfig, Run, TrainConfig
from moejax.dispatch.cells import FixedCell
from moejax.ffn.moe import Moe
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK
from moejax.training import program as training_program
from moejax.training.data.batches import BatchSource
from moejax.training.data.corpus import prepare
from moejax.training.data.packing import Rows

BATCHES = 4  # that every contestant's steps go through in turn
STRONG, WEAK = "strong", "weak"  # the same work for all devices together, or for each


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    width: int = 256
    layers: int = 4
    hidden: int = 256  # of one expert
    vocab: int = 2048
    tokenizer: str = "bpe"
    seq_len: int = 128
    rows: int = 16  # of all devices together in strong scaling, and of the most devices in weak scaling
    devices: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 5
    steps: int = 1  # that one sample is the mean of


def tiny() -> Settings:
    """Two devices, a few steps."""
    return Settings(32, 1, 16, 272, "bytes", 16, rows=4, devices=(1, 2), rounds=2, steps=1)


@dataclasses.dataclass(frozen=True)
class Case:
    """One layout over some devices, and how many rows they get together."""

    layout: str  # one | data | expert | data x expert
    mesh: MeshConfig
    rows: int
    kinds: tuple[str, ...]  # STRONG, WEAK

    @property
    def devices(self) -> int:
        return self.mesh.row_shards

    @property
    def name(self) -> str:
        return f"measured {self.layout}, {self.devices} devices, {self.rows} rows"


def layouts(devices: int) -> dict[str, MeshConfig]:
    """Every way to use so many devices."""
    if devices == 1:
        return {"one": MeshConfig()}
    found = {"data": MeshConfig(data=devices), "expert": MeshConfig(expert=devices)}
    return found | ({"data x expert": MeshConfig(data=2, expert=devices // 2)} if devices >= 4 else {})


def cases(cfg: Settings) -> list[Case]:
    """Every layout with strong and weak scaling, which is the same for the most devices; and one device."""
    most = max(cfg.devices)
    found = []
    for n in cfg.devices:
        shares = {cfg.rows: (STRONG,), cfg.rows * n // most: (WEAK,)}
        if n == most:
            shares = {cfg.rows: (STRONG, WEAK)}
        for layout, mesh in layouts(n).items():
            found += [Case(layout, mesh, rows, kinds) for rows, kinds in shares.items()]
    missing = {case.rows for case in found} - {case.rows for case in found if case.devices == 1}
    return [Case("one", MeshConfig(), rows, ()) for rows in sorted(missing)] + found


def recipe(cfg: Settings, rows: int, mesh: MeshConfig) -> Run:
    """The run of a case: 16 experts, 2 per token, in cells with capacity, so that all rows cost alike."""
    from configs import base

    attn = Gqa(num_heads=cfg.width // 16, num_kv_heads=cfg.width // 32, head_width=16)
    ffn = Moe(16, cfg.hidden, Linear(), TopK(2), FixedCell(capacity_factor=1.25))
    train = TrainConfig(steps=1000, batch_rows=rows, seq_len=cfg.seq_len, losses=base.losses())
    model = base.mixtral(cfg.vocab, attn, ffn, cfg.layers)
    return Run("scaling", model, train, DataConfig(tokenizer=cfg.tokenizer), mesh)


class Contestant:
    """A case that is ready to run."""

    def __init__(self, cfg: Settings, case: Case, text: Rows):
        self._program = training_program.build(recipe(cfg, case.rows, case.mesh))
        source = BatchSource(text, case.rows, seed=0)
        with self._program.mesh_context():
            self._step = self._program.compile_step()
            self._state = self._program.init()
            self._batches = itertools.cycle([self._program.place(source[i]) for i in range(BATCHES)])
        self.cost = flops.count(self._step)

    def step(self) -> None:
        """One optimiser step, to its end."""
        with self._program.mesh_context():
            self._state, _ = self._step(self._state, next(self._batches))
        jax.block_until_ready(self._state.params)


def corpus(cfg: Settings) -> Rows:
    """Rows of the default corpus."""
    return prepare(recipe(cfg, cfg.rows, MeshConfig()).data, cfg.vocab, cfg.seq_len).train


def rows(cfg: Settings, text: Rows) -> list[Row]:
    """All cases, timed side by side."""
    ready = {case: Contestant(cfg, case, text) for case in cases(cfg)}
    for each in ready.values():
        each.step()  # warm
    steps = {case.name: each.step for case, each in ready.items()}
    samples = interleave(steps, cfg.rounds, cfg.steps, between=lambda: None)
    alone = {case.rows: samples[case.name] for case in ready if case.devices == 1}
    return [
        Row(case.name, _measures(case, each.cost, samples[case.name], alone[case.rows]))
        for case, each in ready.items()
    ]


def _measures(
    case: Case, cost: flops.Cost, seconds: Sequence[float], alone: Sequence[float]
) -> tuple[Measure, ...]:
    figure = lambda name, value, unit: Measure(f"{case.name}: {name}", float(value), unit, "lower")
    found = [
        median(f"{case.name}: seconds per step", seconds, "s", "lower"),
        figure("FLOPs per device", cost.flops, "FLOP"),
        figure("through memory per device", cost.bytes, "bytes"),
        figure("memory per device", cost.peak_memory, "bytes"),
        *(figure(f"{kind} per device", n, "bytes") for kind, n in sorted(cost.collective_bytes.items())),
    ]
    if case.devices > 1:  # the same work on one device, in the same round
        ratio = [mine / one for mine, one in zip(seconds, alone, strict=True)]
        found.append(median(f"{case.name}: time / that of one device", ratio, "x", "lower"))
    return tuple(found)


def describe(cfg: Settings) -> dict[str, str]:
    """The settings for people to read."""
    return {
        "model": f"{cfg.layers} layers, width {cfg.width}, 2 of 16 experts of width {cfg.hidden}, float32",
        "text": f"rows of {cfg.seq_len} tokens of the default corpus, {BATCHES} batches in turn",
        "dispatch": "FixedCell(capacity_factor=1.25)",
        "rounds": f"{cfg.rounds} of {cfg.steps} step(s) of every case",
        "versions": f"jax {jax.__version__}",
    }
