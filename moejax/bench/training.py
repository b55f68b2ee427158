"""Training speed: tokens per second of one run's train step, beside its floor and beside transformers.

The floor is what the machine would need in the same minutes if nothing took time but the matmuls of the step
and one pass of the optimizer over memory: closed-form FLOPs over the rate of a large XLA matmul, and bytes
over bandwidth.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
from absl import flags

from moejax import specs as sp
from moejax.analysis import flops, machine
from moejax.bench import peers, step_parts
from moejax.bench.peers import Peers
from moejax.bench.report import Bar, Measure, Report, median
from moejax.bench.rounds import Samples, interleave
from moejax.bench.run import finish
from moejax.config import Run
from moejax.errors import UsageError
from moejax.flags import Call, Program
from moejax.host_memory import keep_pages
from moejax.recipes import resolve
from moejax.training import program as training_program

OURS = "moejax"
SPEEDUP, SHARE = "speed over the best peer", "share of the floor"
BAR = (Bar(SPEEDUP, 1.15), Bar(SHARE, 0.85))
CLAIM = (
    "a train step is at least 1.15 times as fast as transformers' best, and takes 85% of its floor or more"
)
BASELINE = "MixtralForCausalLM of transformers with the same weights and batches, its fastest implementation"
WARM_UP = 2  # steps of every contestant before the first round
BATCHES = 8  # different ones, taken in turn
SUMMARY = """
Measure tokens per second of a run's train step beside its floor and beside transformers' Mixtral.

    python -m moejax.bench training --json=results/training_speed.json
    python -m moejax.bench training --size=tiny
"""


@dataclasses.dataclass(frozen=True)
class TrainingSpeed:
    """What to measure, how often."""

    run: Run
    source: str  # of the run
    rounds: int = 7
    steps: int = 1  # of every contestant in every round
    peers: bool = True
    matmul_size: int | None = None  # of the yardstick; None chooses for the device
    bandwidth_size: int = 2**26  # floats of the other yardstick


def tiny() -> TrainingSpeed:
    """Seconds, most of them to compile; its figures mean nothing."""
    run = resolve("configs/tiny.py", {"train.batch_rows": "4", "train.seq_len": "16"}).config
    return TrainingSpeed(run, "configs/tiny.py", rounds=3, matmul_size=256, bandwidth_size=2**20)


def run(cfg: TrainingSpeed) -> Report:
    """Measure; every contestant starts from the same weights and sees the same batches."""
    start = time.monotonic()
    program = training_program.build(cfg.run)
    with program.mesh_context():
        batches = step_parts.random_batches(program, BATCHES)
        placed = [program.place(batch) for batch in batches]
        params = program.init().params
        ours = step_parts.Step(program, placed)
        parts = {
            "forward": step_parts.Forward(program, params, placed[0]),
            "gradient": step_parts.Gradient(program, params, placed[0]),
            "update": step_parts.Update(program, params),
        }
        ours()
        found = Peers()
        if cfg.peers:
            found = peers.find(cfg.run, params, batches, float(ours.losses[0]))
        contestants = {OURS: ours, **found.steps, **parts}
        for step in contestants.values():
            _warm_up(step)
        yardstick = _Yardstick(program, cfg)
        samples = interleave(contestants, cfg.rounds, cfg.steps, yardstick)
    return Report(
        name="training speed",
        claim=CLAIM,
        source=f"{cfg.source}: the step that train.py compiles, {cfg.run.model.dtype}, AdamW",
        settings=_settings(cfg, program) | {"compiled step": _priced(ours.compiled)} | found.settings,
        baseline=BASELINE,
        measures=_measures(program, samples, list(found.steps), yardstick),
        bar=BAR,
        machine=machine.describe(),
        seconds=time.monotonic() - start,
        notes=tuple(found.notes),
    )


def _warm_up(step: Callable[[], None]) -> None:
    for _ in range(WARM_UP):
        step()


class _Yardstick:
    """What the machine can do, measured before every round, and the time the step would need at that rate."""

    def __init__(self, program: training_program.Program, cfg: TrainingSpeed):
        self.flops = program.flops_per_step
        self.bytes = optimizer_bytes(program)
        self.cfg = cfg
        self.rates, self.bandwidths = [], []

    def __call__(self) -> None:
        self.rates.append(machine.matmul_rate(size=self.cfg.matmul_size, repeats=3))
        self.bandwidths.append(machine.memory_bandwidth(self.cfg.bandwidth_size, repeats=3))

    @property
    def matmul_seconds(self) -> list[float]:
        return [self.flops / rate for rate in self.rates]

    @property
    def update_seconds(self) -> list[float]:
        return [self.bytes / bandwidth for bandwidth in self.bandwidths]


def optimizer_bytes(program: training_program.Program) -> int:
    """What AdamW must move in f32: parameter, gradient and two moments in, all but the gradient out."""
    return sp.count(program.specs) * 4 * (4 + 3)


def _measures(program, samples: Samples, rivals: list[str], yardstick: _Yardstick) -> tuple[Measure, ...]:
    train = program.run.train
    tokens = train.batch_rows * train.seq_len
    floor = [a + b for a, b in zip(yardstick.matmul_seconds, yardstick.update_seconds, strict=True)]
    ours = samples[OURS]

    def speed(name: str, seconds: list[float]) -> Measure:
        return median(name, [tokens / s for s in seconds], "tokens/s", "higher")

    measures = [speed(name, samples[name]) for name in (OURS, *rivals)] + [speed("floor", floor)]
    if rivals:
        best = min(rivals, key=lambda name: statistics.median(samples[name]))
        measures.append(_ratio(SPEEDUP, samples[best], ours))
    measures.append(_ratio(SHARE, floor, ours))
    measures += _part_measures(samples, yardstick)
    measures.append(median("matmul rate", [rate / 1e9 for rate in yardstick.rates], "GFLOP/s"))
    measures.append(median("memory bandwidth", [rate / 1e9 for rate in yardstick.bandwidths], "GB/s"))
    return tuple(measures)


def _part_measures(samples: Samples, yardstick: _Yardstick) -> list[Measure]:
    """Where a step's time goes, and how near each part is to its floor; the parts are compiled apart."""
    step, forward, gradient, update = (
        np.array(samples[name]) for name in (OURS, "forward", "gradient", "update")
    )
    matmul, moving = np.array(yardstick.matmul_seconds), np.array(yardstick.update_seconds)
    parts = {"step": step, "forward": forward, "backward": gradient - forward, "update": update}
    parts["rest of the step"] = step - gradient - update
    floors = {"forward": matmul / 3, "backward": matmul * 2 / 3, "update": moving}
    seconds = [median(name, list(map(float, taken)), "s", "lower") for name, taken in parts.items()]
    return seconds + [
        _ratio(f"{SHARE}, {name}", list(map(float, floor)), list(map(float, parts[name])))
        for name, floor in floors.items()
    ]


def _ratio(name: str, numerator: list[float], denominator: list[float]) -> Measure:
    """The ratio of the medians; the samples and their spread are the ratios within each round."""
    paired = median(name, [a / b for a, b in zip(numerator, denominator, strict=True)], "x", "higher")
    value = statistics.median(numerator) / statistics.median(denominator)
    return dataclasses.replace(paired, value=value)


def _settings(cfg: TrainingSpeed, program: training_program.Program) -> dict:
    train = program.run.train
    return {
        "config": cfg.source,
        "model": f"{sp.count(program.specs):,} parameters, {sp.count_active(program.specs):,} active",
        "batch": f"{train.batch_rows} rows of {train.seq_len} uniform random tokens (seed {train.seed})",
        "rounds": f"{cfg.rounds} of {cfg.steps} step(s) each, {BATCHES} batches in turn",
        "floor": f"{program.flops_per_step / 1e9:.4g} GFLOP in matmuls (attention in full) and "
        f"{optimizer_bytes(program) / 1e9:.3g} GB by the optimizer",
        "versions": {"jax": jax.__version__, "optax": optax.__version__, "numpy": np.__version__},
    }


def _priced(compiled) -> str:
    """What the compiled program does, by phase: work beyond the closed form, and its traffic."""
    rows = flops.breakdown(compiled, depth=0)
    return "; ".join(
        f"{row.phase} {row.matmul_flops / 1e9:.4g} GFLOP in matmuls, {row.bytes / 1e9:.3g} GB moved"
        for row in rows
    )


def define(values: flags.FlagValues) -> None:
    """The flags of the benchmark."""
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("config", "configs/small.py", "recipe, FILE.py or FILE.py:FUNCTION", flag_values=values)
    text("size", "", "tiny: a run of seconds that shows that everything works", flag_values=values)
    number("rounds", 7, "samples of every contestant", lower_bound=1, flag_values=values)
    number("steps", 1, "steps of every contestant per round", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("peers", True, "measure transformers too", flag_values=values)
    text("json", None, "write the report there too", flag_values=values)


def main(call: Call) -> None:
    """Flags to a run of the benchmark."""
    keep_pages()  # as train.py does; torch lives in the same process and gains too
    values = call.flags
    if values["size"].value not in ("", "tiny"):
        raise UsageError(f"--size={values['size'].value} is not a size; --size=tiny, or none")
    if values["size"].value:
        cfg = dataclasses.replace(tiny(), peers=values["peers"].value)
    else:
        source = values["config"].value
        resolved = resolve(source, call.overrides)
        options = {name: values[name].value for name in ("rounds", "steps", "peers")}
        cfg = TrainingSpeed(resolved.config, source, **options)
    finish(run(cfg), values["json"].value)


PROGRAM = Program("python -m moejax.bench training", SUMMARY, define, main)
