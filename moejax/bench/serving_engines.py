"""The two engines of the serving papers' programs: a clock that is a model of latency, and a real model.

On the simulated clock every figure repeats exactly, and loads are as large as the papers'. The real engine
says whether texts stay the same, what its own router loads, and what a small machine can show of the time.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

import moejax
from configs import base
from moejax.attention.gqa import Gqa
from moejax.bench import domains
from moejax.bench.serving_outcome import Outcome, Slo, watch
from moejax.config import ModelConfig, require
from moejax.ffn.dense import Dense
from moejax.model.forward import init
from moejax.serving import engine
from moejax.serving.device import Device, Sizes
from moejax.serving.pages import Pages
from moejax.serving.plan import Result, Scheduler
from moejax.serving.request import Sampling
from moejax.serving.simulated import Latency, Simulated
from moejax.serving.state import Job, ServeState
from moejax.training.data.sources import find_files
from moejax.training.data.tokenizer import byte_tokenizer

YI_34B = Latency(fixed=47e-3, row=0.18e-3)  # on two A100, near enough (arXiv 2403.02310)
GREEDY = Sampling(temperature=0.0)
SLO = Slo(ttft=5.0, tbt=0.2)


def simulate(
    jobs: Iterable[Job],
    scheduler: Scheduler,
    slots: int = 128,
    cache: int = 2**19,
    sizes: Sequence[int] = (),
) -> Outcome:
    """Serve with one scheduler on the clock of `YI_34B`.

    Args:
      cache: positions.
      sizes: rows of the steps that exist; empty = any.
    """
    state = ServeState(slots, Pages(cache // 16, 16), num_layers=48)
    return watch(engine.serve(jobs, scheduler, Simulated(YI_34B, 48, sizes=sizes), state, ahead=0), SLO)


def digits(name: int, length: int) -> tuple[int, ...]:
    """Tokens that tell their name at once."""
    return (name % 251, name // 251, *(0,) * int(length - 2))[:length]


@dataclasses.dataclass(frozen=True)
class Served:
    """What a real engine made of a list of jobs."""

    outcome: Outcome
    texts: dict[int, list[int]]  # by id of the job
    results: tuple[Result, ...]


class Engine:
    """A model that serves one list of jobs after the other, with programs that are compiled once."""

    def __init__(self, model: moejax.Model, sizes: Sizes):
        self.model, self.sizes, self._device = model, sizes, Device(model, sizes)

    def serve(
        self, jobs: Sequence[Job], scheduler: Scheduler, sharing: bool = True, slots: int | None = None
    ) -> Served:
        """Run every job to its end; the first one arrives now.

        Args:
          sharing: find pages by what they hold.
          slots: requests that run at once; None = as many as there are slots.
        """
        pages = Pages(self.sizes.num_pages, self.sizes.page_size, sharing)
        state = ServeState(slots or self.sizes.num_slots, pages, self.model.cfg.num_layers)
        texts, results = collections.defaultdict(list), []

        def noted(steps: Iterable[engine.Step]) -> Iterator[engine.Step]:
            for step in steps:
                results.append(step.result)
                for drawn in step.written:
                    texts[drawn.job].append(drawn.token)
                yield step

        now = self._device.now()
        late = [dataclasses.replace(job, arrival=job.arrival + now, settings=GREEDY) for job in jobs]
        outcome = watch(noted(engine.serve(late, scheduler, self._device, state, ahead=0)), SLO)
        return Served(outcome, dict(texts), tuple(results))


def alike(one: Served, other: Served) -> float:
    """Share of the requests whose texts are the same."""
    return float(np.mean([one.texts[job] == other.texts[job] for job in one.texts]))


def untrained(cfg: ModelConfig, context: int, seed: int) -> moejax.Model:
    """A model with drawn parameters; where only time and equality count it is as good as any."""
    return moejax.Model(cfg, init(jax.random.key(seed), cfg), byte_tokenizer(), context)


def moe(layers: int, width: int, hidden: int, experts: int, k: int) -> ModelConfig:
    """Bytes as tokens, heads of 32; untied, because with tied embeddings it only repeats itself."""
    return base.mixtral(272, _heads(width), base.moe(experts, hidden, k), layers, tied=False)


def dense(layers: int, width: int, hidden: int) -> ModelConfig:
    """The same with one network per layer."""
    return base.mixtral(272, _heads(width), Dense(hidden), layers, tied=False)


def _heads(width: int) -> Gqa:
    return Gqa(num_heads=width // 32, num_kv_heads=width // 32, head_width=32)


class Prompts:
    """Pieces of real documents as bytes.

    Args:
      paths: of texts; none = the source of the standard library.
    """

    def __init__(self, paths: Sequence[str] = ()):
        self._text = b"\n\n".join(domains.documents_of(find_files(tuple(paths))))
        self._encode = byte_tokenizer().encode

    def cut(self, lengths: Iterable[int], seed: int) -> list[tuple[int, ...]]:
        """Tokens of so many pieces, each from a place of its own."""
        rng, found = np.random.default_rng(seed), []
        for length in map(int, lengths):
            require(
                len(self._text) > length, f"the text has {len(self._text)} bytes, a prompt needs {length}"
            )
            start = rng.integers(len(self._text) - length)
            found.append(self._tokens(self._text[start : start + length])[:length])
        return found

    def paragraphs(self, most: int, seed: int) -> Iterator[tuple[int, ...]]:
        """Tokens of paragraphs, drawn one after the other; longer ones are cut to `most`."""
        pieces = [piece for piece in self._text.split(b"\n\n") if len(piece) >= 2]
        for i in np.random.default_rng(seed).permutation(len(pieces)):
            yield self._tokens(pieces[i][:most])[:most]

    def _tokens(self, piece: bytes) -> tuple[int, ...]:
        return tuple(map(int, self._encode(piece.decode("utf-8", "replace"))))
