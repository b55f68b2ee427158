"""Batch generation: tokens per second from prompts of mixed length, beside llama.cpp and transformers.

Every contestant gets the same ids and writes the same number of most likely tokens for every prompt; end
tokens end nothing. Reading counts until every prompt has its first token, writing is the rest.

Like is compared with like: float32 with transformers in float32, bfloat16 with it in bfloat16. llama.cpp
multiplies 4-bit weights by rows in 8 bits; what stands beside it are our products of 16 bits.
"""

import dataclasses
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping

import jax
import numpy as np
from absl import flags

from moejax import model_io
from moejax.analysis import machine
from moejax.bench.generation_peers import LLAMA, SHORT, TRANSFORMERS, Contestant, Outcome, Peers, Prompts
from moejax.bench.report import Bar, Measure, Report, median
from moejax.bench.run import finish
from moejax.config import require
from moejax.flags import Call, Program
from moejax.serving import engine
from moejax.serving.device import Device, Sizes
from moejax.serving.model import Model
from moejax.serving.pages import Pages
from moejax.serving.request import Sampling
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.short_weights import in_bfloat16, in_int8
from moejax.serving.state import Job, ServeState

OURS = "moejax"
WRITTEN, PREFILL, DECODE = "written, prefill included", "prefill", "decode"
IN_SHORT = f"{OURS}, {SHORT}"
OVER_LLAMA, OVER_BEST = "speed over llama.cpp", "speed over transformers' best"
DECODE_OVER_BEST = "decode speed over transformers' best"
BARS = (Bar(f"{SHORT}: {OVER_LLAMA}", 2.5), Bar(OVER_BEST, 1.6), Bar(DECODE_OVER_BEST, 1.1))
CLAIM = (
    "a batch is written in bfloat16 at least 2.5 times as fast as by llama.cpp with all prompts in one "
    "context, and in float32 1.6 times as fast as by transformers at its best batch size; decoding alone at "
    "least 1.1 times"
)
MOVED = (
    "before weights of 16 bits could be served, the bar of 2.5 stood beside float32, which never reached it"
)
BATCHES = (64, 16, 8)  # of transformers
# Of ours: steps of one size; weights of 16 and of 8 bits, whose texts are others.
VARIANTS = ("exact", SHORT, "int8")
PAGE = 128  # positions
SUMMARY = """
Measure output tokens per second of a batch of prompts, beside llama.cpp and transformers.

    python -m moejax.bench generation --model=SmolLM2.gguf --text=wikitext2_valid.txt \\
        --llama_python=PATH --json=results/generation.json
"""


@dataclasses.dataclass(frozen=True)
class Generation:
    """What to measure, how often."""

    model: str  # path; of a GGUF file, if llama.cpp is to take part
    text: str  # path; prompts are pieces of it
    prompts: int = 64
    shortest: int = 16  # tokens of a prompt
    longest: int = 192
    new_tokens: int = 64
    single_tokens: int = 32  # for the first prompt alone
    rounds: int = 3
    rows: tuple[int, ...] = (1, 64, 256, 512, 768, 1024)  # of our steps
    exact_rows: int = 64  # of every step of ours where the number must not change
    batches: tuple[int, ...] = BATCHES
    variants: tuple[str, ...] = VARIANTS
    llama_python: str | None = None  # has llama-cpp-python; None = do not ask
    transformers_python: str | None = sys.executable  # has transformers; None = do not ask


def tiny(model: str, text: str) -> Generation:
    """Seconds, without peers; its figures mean nothing."""
    return Generation(
        model, text, prompts=4, shortest=2, longest=9, new_tokens=3, single_tokens=3, rounds=2, rows=(8,),
        exact_rows=8, batches=(2,), transformers_python=None,
    )  # fmt: skip


def run(cfg: Generation, contestants: Mapping[str, Contestant] | None = None) -> Report:
    """Measure.

    Args:
      contestants: others than the peers that `cfg` names.
    """
    start, notes = time.monotonic(), [MOVED]
    model = model_io.load(cfg.model)
    prompts = prompts_of(model, pathlib.Path(cfg.text).read_text(encoding="utf-8"), cfg)
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(notes)
        try:
            others = _peers(peers, cfg, model, folder) if contestants is None else contestants
            everybody = {OURS: Ours(model, cfg)} | _variants(model, cfg) | others
            batch, single = _rounds(cfg, everybody, prompts)
        finally:
            peers.close()
    return Report(
        name="batch generation",
        claim=CLAIM,
        source=f"{pathlib.Path(cfg.model).name}, here and in transformers in float32, or as named",
        settings=_settings(cfg, prompts) | {"versions": {"jax": jax.__version__} | peers.versions},
        baseline="llama.cpp through llama-cpp-python, transformers' generate in batches sorted by length",
        measures=tuple(measures(cfg, batch, single, sum(map(len, prompts)))),
        bar=BARS,
        machine=machine.describe(),
        seconds=time.monotonic() - start,
        notes=tuple(notes),
    )


def prompts_of(model: Model, text: str, cfg: Generation) -> Prompts:
    """Pieces of the text of evenly drawn lengths, one after the other."""
    lengths = np.random.default_rng(0).integers(cfg.shortest, cfg.longest, cfg.prompts)
    ids = model.tokenizer.encode(text[: 16 * int(lengths.sum())])
    require(len(ids) >= lengths.sum(), f"the text has {len(ids)} tokens, the prompts need {lengths.sum()}")
    ends = np.cumsum(lengths)
    return [list(map(int, ids[end - n : end])) for n, end in zip(lengths, ends, strict=True)]


def _rounds(cfg: Generation, everybody: Mapping[str, Contestant], prompts: Prompts):
    """Outcomes by contestant of the batch and of the first prompt alone; every other round goes backwards."""
    batch = {name: [] for name in everybody}
    single = {name: [] for name in everybody}
    for contestant in everybody.values():
        contestant(prompts, 2)
        contestant(prompts[:1], 2)
    for number in range(cfg.rounds):
        for name in list(everybody)[:: 1 if number % 2 == 0 else -1]:
            batch[name].append(everybody[name](prompts, cfg.new_tokens))
            single[name].append(everybody[name](prompts[:1], cfg.single_tokens))
    return batch, single


class Ours:
    """The engine: whole prompts first, then all requests write."""

    def __init__(self, model: Model, cfg: Generation):
        self.cfg = cfg
        self.pages = -(-(cfg.longest + max(cfg.new_tokens, cfg.single_tokens)) // PAGE) * cfg.prompts
        self.device = Device(model, Sizes(cfg.prompts, self.pages, PAGE, cfg.rows))

    def __call__(self, prompts: Prompts, new_tokens: int) -> Outcome:
        state = ServeState(
            self.cfg.prompts, Pages(self.pages, PAGE, sharing=False), self.device.model.cfg.num_layers
        )
        jobs = [Job(i, tuple(ids), new_tokens, settings=Sampling()) for i, ids in enumerate(prompts)]
        written, first = [[] for _ in prompts], 0.0
        begin = time.perf_counter()
        for step in engine.serve(jobs, Fcfs(self.cfg.rows[-1]), self.device, state):
            for drawn in step.written:
                if not written[drawn.job]:
                    first = time.perf_counter()
                written[drawn.job].append(drawn.token)
        return Outcome(first - begin, time.perf_counter() - first, written)


def _peers(peers: Peers, cfg: Generation, model: Model, folder: str) -> dict[str, Contestant]:
    """Those that can be asked."""
    if cfg.llama_python:
        peers.add_llama(cfg.llama_python, cfg.model)
    if cfg.transformers_python:
        model_io.save(model, f"{folder}/hf", format="hf")
        peers.add_transformers(cfg.transformers_python, f"{folder}/hf", cfg.batches)
    return peers.contestants


def _variants(model: Model, cfg: Generation) -> dict[str, Contestant]:
    """What `serve.py --exact` and `--weights=...` would take."""
    exact = dataclasses.replace(cfg, rows=(cfg.exact_rows,))
    made = {
        "exact": lambda: Ours(model, exact),
        SHORT: lambda: Ours(in_bfloat16(model), cfg),
        "int8": lambda: Ours(in_int8(model), cfg),
    }
    return {f"{OURS}, {name}": made[name]() for name in cfg.variants}


def measures(cfg: Generation, batch, single, prompt_tokens: int) -> list[Measure]:
    """Rates of everybody, ratios of the medians, and how many texts are ours."""
    written = cfg.prompts * cfg.new_tokens
    found, value = [], {}

    def rate(name: str, what: str, tokens: int, seconds: list[float]) -> None:
        found.append(median(f"{name}: {what}", [tokens / s for s in seconds], "tokens/s", "higher"))
        value[name, what] = found[-1].value

    for name, outcomes in batch.items():
        rate(name, WRITTEN, written, [o.seconds for o in outcomes])
        rate(name, PREFILL, prompt_tokens, [o.prefill for o in outcomes])
        rate(name, DECODE, written - cfg.prompts, [o.decode for o in outcomes])
        rate(name, "decode, one prompt", cfg.single_tokens - 1, [o.decode for o in single[name]])
    for prefix, ours, rival in (
        ("", OURS, TRANSFORMERS),
        (f"{SHORT}: ", IN_SHORT, f"{TRANSFORMERS} in {SHORT}"),
    ):
        for name, what, peer in (
            (OVER_LLAMA, WRITTEN, LLAMA),
            (OVER_BEST, WRITTEN, f"{rival}, "),
            (DECODE_OVER_BEST, DECODE, f"{rival}, "),
        ):
            theirs = [value[other, what] for other in batch if other.startswith(peer)]
            if theirs and ours in batch:
                ratio = value[ours, what] / max(theirs)
                found.append(Measure(f"{prefix}{name}", ratio, "x", "higher", cfg.rounds))
    for name in (name for name in batch if name.startswith(f"{OURS},")):
        relative = value[name, WRITTEN] / value[OURS, WRITTEN]
        found.append(Measure(f"{name}: speed over {OURS}", relative, "x", "higher", cfg.rounds))
    ours = batch[OURS][0].tokens
    for name, outcomes in batch.items():
        same = sum(list(a) == list(b) for a, b in zip(ours, outcomes[0].tokens, strict=True))
        if name != OURS:
            found.append(Measure(f"{name}: same texts", same / cfg.prompts, "share", "neither", cfg.prompts))
    return found


def _settings(cfg: Generation, prompts: Prompts) -> dict:
    total = sum(map(len, prompts))
    return {
        "prompts": f"{cfg.prompts} of {cfg.shortest} to {cfg.longest - 1} tokens, {total} in all, "
        f"from {pathlib.Path(cfg.text).name}",
        "new tokens": f"{cfg.new_tokens} for each; {cfg.single_tokens} for one prompt alone",
        "steps": f"of {cfg.rows} rows, pages of {PAGE} positions, first come first served",
        "threads": os.cpu_count(),
        "rounds": cfg.rounds,
    }


def define(values: flags.FlagValues) -> None:
    """The flags of the benchmark."""
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("model", "", "path of a GGUF file", flag_values=values)
    text("text", "", "path of a text", flag_values=values)
    number("rounds", 3, "samples of every contestant", lower_bound=1, flag_values=values)
    text("llama_python", None, "a Python that has llama-cpp-python", flag_values=values)
    text("transformers_python", sys.executable, "a Python that has transformers", flag_values=values)
    flags.DEFINE_multi_enum("variants", VARIANTS, VARIANTS, "of ours", flag_values=values)
    flags.DEFINE_list("batches", [str(rows) for rows in BATCHES], "of transformers", flag_values=values)
    text("json", None, "write the report there too", flag_values=values)


def main(call: Call) -> None:
    """Flags to a run of the benchmark."""
    names = ("model", "text", "rounds", "llama_python", "transformers_python")
    values = {name: call.flags[name].value for name in names}
    require(bool(values["model"] and values["text"]), "give --model=FILE.gguf and --text=FILE")
    batches = tuple(int(rows) for rows in call.flags["batches"].value)
    variants = tuple(call.flags["variants"].value)
    finish(run(Generation(**values, batches=batches, variants=variants)), call.flags["json"].value)


PROGRAM = Program("python -m moejax.bench generation", SUMMARY, define, main, takes_config=False)
