"""Layered prefill: a prompt walks through groups of layers, one a step, so that experts are loaded once.

From Tokens to Layers: Redefining Stall-Free Scheduling for LLM Serving with Layered Prefill (2025, arXiv
2510.08055). Counted are the distinct experts that steps meet while prompts of 512 tokens are read beside D
requests that write: in chunks of 64, and as one cohort that passes one of 8 groups of layers a step. Both
take the same number of steps, and nobody who writes waits in either.

1. On the simulated executor with drawn routing, popularity of experts by Zipf's law, or all alike.
2. On a model that was trained on real text, with pieces of the same text as prompts: what its own router
   loads, and whether texts are the same.

Differs from the paper: loads are counted, and neither bytes nor energy measured; the wall time of a small
model on CPU says nothing about experts that have to come from memory.
Tested elsewhere: the number and sizes of groups, and loads by hand, in
tests/serving/schedulers/test_layered.py; equality of text in tests/contracts/test_scheduler.py.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from moejax.bench import domains, replicas
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.report import Bar, Measure, mean, paired, paired_ratio
from moejax.bench.serving_engines import Engine, Served, alike, digits, moe
from moejax.config import OptimConfig, Run, TrainConfig, require
from moejax.losses.balance import GlobalBalance
from moejax.losses.next_token import NextToken
from moejax.serving.device import Sizes
from moejax.serving.engine import serve
from moejax.serving.pages import Pages
from moejax.serving.plan import Result, Scheduler
from moejax.serving.schedulers.chunked import Chunked
from moejax.serving.schedulers.layered import Layered
from moejax.serving.simulated import Latency, Simulated, Table
from moejax.serving.state import Job, ServeState

CLAIM = (
    "Groups of layers load at least a tenth fewer experts than chunks do in as many steps, most where few "
    "requests write, and change no text"
)
DRAWN = ((64, 4, 4), (16, 2, 4), (16, 2, 8))  # E, k, D
WRITERS = (1, 4, 8)  # D beside the trained model
SIMULATED = "drawn routing: experts loaded, chunks over groups, E={} k={} D={}"
REAL = "trained router: experts loaded, chunks over groups, D={}"
FADES = "trained router: gain with 1 writer - gain with 8"
SAME, STALLS = "trained model: texts that are the same", "steps in which somebody who writes got no token"
BARS = (
    *(Bar(SIMULATED.format(E, k, D), at_least=1 / 0.9) for E, k, D in DRAWN if D <= 4),
    *(Bar(REAL.format(D), at_least=1 / 0.9) for D in WRITERS if D <= 4),
    Bar(FADES, at_least=0.0),
    Bar(SAME, at_least=1.0),
    Bar(STALLS, at_most=0.0),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is read, and the model that is trained for it."""

    seeds: tuple[int, ...] = (0, 1, 2)
    prompts: int = 24  # on the simulated executor
    real_prompts: int = 4
    length: int = 512  # of a prompt
    groups: int = 8  # of layers, and chunks
    width: int = 64
    hidden: int = 64
    experts: int = 32
    k: int = 4
    vocab: int = 1024
    steps: int = 300
    batch_rows: int = 16
    seq_len: int = 64
    most_bytes: int = 1 << 20  # of a domain of text

    @property
    def unit(self) -> int:
        """Tokens of a chunk."""
        return self.length // self.groups


SIZES = {
    "tiny": Settings(
        prompts=2, real_prompts=1, length=32, groups=2, width=32, hidden=16, experts=8, k=2, vocab=300,
        steps=2, batch_rows=2, seq_len=16, most_bytes=1 << 16,
    ),
    "default": Settings(),
    "full": Settings(seeds=(0, 1, 2, 3, 4), prompts=100, real_prompts=12, width=128, hidden=128, steps=1500,
                     seq_len=128),
    "gpu": Settings(prompts=100, real_prompts=12, width=512, hidden=512, experts=64, steps=3000, seq_len=512),
}  # fmt: skip


def recipe(s: Settings) -> Run:
    """A layer per group; balanced no more than usual, so that some experts are more popular than others."""
    return Run(
        name="layered_prefill",
        model=dataclasses.replace(moe(s.groups, s.width, s.hidden, s.experts, s.k), vocab=s.vocab),
        train=TrainConfig(
            steps=s.steps,
            batch_rows=s.batch_rows,
            seq_len=s.seq_len,
            losses=(NextToken(), GlobalBalance(weight=1e-2)),
            optim=OptimConfig(learning_rate=3e-3, warmup_steps=min(50, s.steps)),
        ),
    )


def measure(s: Settings, inputs: Inputs) -> Findings:
    """Drawn routing, then a trained router."""
    text = domains.prepare(inputs, s.vocab, s.seq_len, s.most_bytes)
    trained = replicas.train(recipe(s), text, s.seeds, inputs.cache)
    tokens = np.concatenate([np.ravel(rows.target_NT[rows.seg_NT > 0]) for rows in text.held_out.values()])
    found = [_real(s, one, tokens) for one in trained]
    gains = {D: [gain[D] for gain, _, _ in found] for D in WRITERS}
    measures = [
        *drawn(s),
        *(mean(REAL.format(D), gains[D], "x", "higher") for D in WRITERS),
        paired(FADES, gains[WRITERS[0]], gains[WRITERS[-1]], "x", "higher"),
        Measure(SAME, min(same for _, same, _ in found), "share", "higher", len(found)),
        Measure(STALLS, sum(stalls for _, _, stalls in found), "rows", "lower", len(found)),
        mean(
            "held-out loss of the trained models",
            [one.held_out_loss for one in trained],
            "nats/token",
            "lower",
        ),
    ]
    low, high = ([pick(gains[D]) for D in WRITERS] for pick in (min, max))
    curve = Curve(
        "trained router", WRITERS, tuple(np.mean(gains[D]) for D in WRITERS), tuple(low), tuple(high)
    )
    chart = Chart(
        "what groups of layers save", "requests that write", "experts loaded, chunks over groups", (curve,)
    )
    return Findings(tuple(measures), text.settings, text.notes, (chart,))


def drawn(s: Settings) -> list[Measure]:
    """Routing by Zipf's law, or of experts that are all alike."""
    found = []
    for E, k, D in DRAWN:
        for power, name in ((1.0, ""), (0.0, ", all alike")):
            loads = [
                [_drawn_loads(s, scheduler, Table.zipf(8, E, k, power, seed), D) for seed in s.seeds]
                for scheduler in (Chunked(64 + D), Layered(unit=64))
            ]
            found.append(paired_ratio(SIMULATED.format(E, k, D) + name, *loads, "higher"))
    return found


def _drawn_loads(s: Settings, scheduler: Scheduler, routing: Table, D: int) -> int:
    """Experts loaded by the steps that read one of the prompts, each of 512 tokens in 8 layers."""
    prompts = [digits(D + i, 512) for i in range(s.prompts + 1)]
    jobs = beside([(id,) for id in range(D)], prompts, steps=8)
    pages = sum(len(job.prompt) + job.max_new for job in jobs) // 16 + len(jobs)
    state = ServeState(D + 1, Pages(pages, 16, sharing=False), 8)
    executor = Simulated(Latency(fixed=1.0), 8, routing)
    return loads((step.result for step in serve(jobs, scheduler, executor, state, ahead=0)), D).experts


def beside(writers: Sequence[tuple[int, ...]], prompts: Sequence[tuple[int, ...]], steps: int) -> list[Job]:
    """Requests that write all the time, and prompts that are read one after the other in `steps` each."""
    D, last = len(writers), (steps + 1) * len(prompts) + 8
    written = [Job(id, prompt, last) for id, prompt in enumerate(writers)]
    return written + [Job(D + i, prompt, 1) for i, prompt in enumerate(prompts)]


@dataclasses.dataclass(frozen=True)
class Loads:
    """What steps did that read a prompt beside D requests that write."""

    experts: int = 0  # distinct ones, summed over layers and steps
    steps: int = 0
    stalls: int = 0  # rows that writers did not get


def loads(results: Iterable[Result], D: int) -> Loads:
    """Of the steps that read, the first prompt's left out, as writers begin while it is read."""
    found = Loads()
    for result in results:
        works = result.plan.works
        if any(work.run.job.id > D for work in works):
            writing = sum(work.run.job.id < D and work.start >= work.run.given for work in works)
            found = Loads(found.experts + result.expert_loads, found.steps + 1, found.stalls + D - writing)
    return found


def _real(s: Settings, trained: replicas.Trained, tokens: np.ndarray) -> tuple[dict[int, float], float, int]:
    """Per number of writers the gain; the share of texts that are the same; and writers without a row."""
    most = WRITERS[-1]
    positions = (most + 2) * (s.length + (s.groups + 1) * (s.real_prompts + 1) + 64)
    rows = (most, s.unit + most, s.length + most)
    sizes = Sizes(most + 1, -(-positions // 16), 16, rows, num_parked=s.length)
    context = 2 * s.length + (s.groups + 1) * (s.real_prompts + 1) + 64
    engine = Engine(dataclasses.replace(trained.model, context=context), sizes)
    gain, same, stalls = {}, [], 0
    for D in WRITERS:
        jobs = _jobs(s, trained.seed, tokens, D)
        arms: list[Served] = []
        for scheduler in (Chunked(s.unit + D), Layered(unit=s.unit, cap=s.length)):
            arms.append(engine.serve(jobs, scheduler, sharing=False, slots=D + 1))
        chunks, groups = (loads(arm.results, D) for arm in arms)
        require(
            chunks.steps == groups.steps, f"{chunks.steps} steps read in chunks, {groups.steps} in groups"
        )
        gain[D] = chunks.experts / groups.experts
        stalls += chunks.stalls + groups.stalls
        same.append(alike(*arms))
    return gain, min(same), stalls


def _jobs(s: Settings, seed: int, tokens: np.ndarray, D: int) -> list[Job]:
    """Pieces of held-out text: a short one for everybody who writes, long ones to be read."""
    rng = np.random.default_rng(seed)

    def piece(length: int) -> tuple[int, ...]:
        start = rng.integers(len(tokens) - length)
        return tuple(map(int, tokens[start : start + length]))

    prompts = [piece(s.length) for _ in range(s.real_prompts + 1)]
    return beside([piece(1) for _ in range(D)], prompts, steps=s.groups)


PAPER = Paper(
    title="From Tokens to Layers: Redefining Stall-Free Scheduling for LLM Serving with Layered Prefill "
    "(2025, arXiv 2510.08055)",
    claim=CLAIM,
    baseline="prompts in chunks, each through all layers (Sarathi-Serve)",
    bars=BARS,
    sizes=SIZES,
    measure=measure,
)
