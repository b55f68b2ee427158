"""Agreement with llama.cpp: both read the same GGUF files and say, token by token, what follows in a text.

Where weights are quantised llama.cpp rounds activations to 8 bits as well, and it keeps keys and values in
float16; here what a file stands for is computed with in float32. The bars say how far the two may differ.
"""

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from moejax import api, model_io
from moejax.analysis import machine
from moejax.bench.report import Bar, Measure, Report
from moejax.bench.run import finish
from moejax.config import require
from moejax.flags import Call, Program
from moejax.interop.gguf.expand import expand
from moejax.interop.gguf.source import GgufFile
from moejax.serving.model import Model

AGREEMENT, KL, PERPLEXITY = "same best token", "margin of divergence", "margin of perplexity"
LEAST, MOST_NATS, MOST_RATIO = 0.96, 0.005, 0.005
EXACT_NATS = 1e-5  # where llama.cpp rounds keys and values alone
ROWS = 64  # positions whose probabilities are in memory at once
PEER = pathlib.Path(__file__).with_name("llama_cpp_peer.py")
MISSING = (
    "llama.cpp was not measured: pip install llama-cpp-python, or name a Python that has it with --python"
)
CLAIM = (
    f"the best next token is llama.cpp's at {LEAST:.0%} of positions or more, the mean divergence is "
    f"{MOST_NATS} nats or less, and perplexities differ by {MOST_RATIO:.1%} or less; where llama.cpp gets "
    f"the same weights in F32 the divergence is {EXACT_NATS} nats or less"
)
SUMMARY = """
Compare what moejax and llama.cpp make of the same GGUF files, teacher-forced on a text.

    python -m moejax.bench gguf --text=wikitext2_valid.txt --models=a.gguf,b.gguf --json=results/gguf.json
"""


@dataclasses.dataclass(frozen=True)
class GgufAgreement:
    """What to compare."""

    models: tuple[str, ...]  # paths
    text: str  # path
    tokens: int = 4096
    window: int = 4096  # tokens of each text that a model sees, from its beginning
    python: str = sys.executable  # has llama-cpp-python
    exact: bool = True  # compare once more where llama.cpp gets the same weights in F32


@dataclasses.dataclass(frozen=True)
class Sums:
    """Over positions; nats."""

    positions: int = 0
    same: int = 0  # best tokens
    divergence: float = 0.0  # of ours from theirs
    ours: float = 0.0  # surprise at the next token
    theirs: float = 0.0
    targets: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Sums(*(a + b for a, b in zip(mine, others, strict=True)))


Texts = np.ndarray  # int32 [texts, window]
# Logits come ROWS at a time, or what is left of a text.
Peer = Callable[[str, Texts], contextlib.AbstractContextManager[tuple[dict, Iterator[np.ndarray]]]]


def run(cfg: GgufAgreement, peer: Peer | None = None) -> Report:
    """Compare every model; `peer` gives what another program says of a model's texts."""
    start = time.monotonic()
    measures, notes, versions = [], [], {"jax": jax.__version__, "numpy": np.__version__}
    if peer is None:
        peer = _llama_cpp(cfg.python)
        notes += [] if _has_llama_cpp(cfg.python) else [MISSING]
    for path in cfg.models if not notes else ():
        model, name = model_io.load(path), pathlib.Path(path).stem
        texts = texts_of(model, pathlib.Path(cfg.text).read_text(encoding="utf-8"), cfg)
        measures += _measures(name, _compare_all(model, texts, peer(path, texts), versions))
        if cfg.exact:
            with tempfile.TemporaryDirectory() as directory:
                whole = pathlib.Path(directory) / "model.gguf"
                expand(GgufFile(path), whole)
                sums = _compare_all(model, texts, peer(str(whole), texts), versions)
            measures += _exact_measures(name, sums)
    return Report(
        name="agreement with llama.cpp on GGUF files",
        claim=CLAIM,
        source="weights as the files stand for them, computed with in float32",
        settings={
            "text": f"the first {cfg.tokens} tokens of {pathlib.Path(cfg.text).name}, {cfg.window} at a time",
            "versions": versions,
        },
        baseline="llama.cpp on CPU through llama-cpp-python, its own defaults",
        measures=tuple(measures),
        bar=tuple(bar for path in cfg.models for bar in _bars(pathlib.Path(path).stem, cfg.exact)),
        machine=machine.describe(),
        seconds=time.monotonic() - start,
        notes=tuple(notes),
    )


def _compare_all(model: Model, texts: Texts, answering, versions: dict) -> Sums:
    with answering as (about, answers):
        versions["llama-cpp-python"] = about["version"]
        return sum((compare_text(model, text, answers) for text in texts), Sums())


def texts_of(model: Model, text: str, cfg: GgufAgreement) -> Texts:
    """Windows of the text's ids, each of which begins as the model wants it."""
    prefix = [model.tokenizer.bos] if model.tokenizer.add_bos else []
    step = cfg.window - len(prefix)
    ids = model.tokenizer.encode(text[: 16 * cfg.tokens])[: cfg.tokens]
    require(len(ids) >= cfg.tokens, f"the text has {len(ids)} tokens, --tokens asks for {cfg.tokens}")
    return np.array([prefix + ids[at : at + step] for at in range(0, len(ids) - step + 1, step)], np.int32)


def compare_text(model: Model, ids_T: np.ndarray, answers: Iterator[np.ndarray]) -> Sums:
    """What both say of one text; the next ROWS logits of theirs come as they are asked for."""
    ours_TV = api.forward(model.params, model.cfg, jnp.asarray(ids_T[None])).logits[0]
    targets_T, sums = np.append(ids_T[1:], -1), Sums()
    for at in range(0, len(ids_T), ROWS):
        own = slice(at, at + ROWS)
        sums += compare(np.asarray(ours_TV[own]), next(answers), targets_T[own])
    return sums


def compare(ours_TV: np.ndarray, theirs_TV: np.ndarray, target_T: np.ndarray) -> Sums:
    """Of logits; a target of -1 is unknown."""
    ours_TV, theirs_TV = (_log_softmax(logits.astype(np.float64)) for logits in (ours_TV, theirs_TV))
    known = target_T >= 0
    surprise = [-float(x[known, target_T[known]].sum()) for x in (ours_TV, theirs_TV)]
    same = int((ours_TV.argmax(-1) == theirs_TV.argmax(-1)).sum())
    divergence = float((np.exp(theirs_TV) * (theirs_TV - ours_TV)).sum())
    return Sums(len(target_T), same, divergence, *surprise, int(known.sum()))


def _log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    shifted_TV = logits_TV - logits_TV.max(-1, keepdims=True)
    return shifted_TV - np.log(np.exp(shifted_TV).sum(-1, keepdims=True))


def _measures(name: str, sums: Sums) -> list[Measure]:
    divergence = sums.divergence / sums.positions
    ours, theirs = np.exp([sums.ours / sums.targets, sums.theirs / sums.targets])
    apart = abs(ours / theirs - 1)
    figures = (
        (AGREEMENT, sums.same / sums.positions, "share", "higher"),
        (KL, MOST_NATS / max(divergence, 1e-12), "x", "higher"),
        (PERPLEXITY, MOST_RATIO / max(apart, 1e-12), "x", "higher"),
        ("mean divergence", divergence, "nats", "lower"),
        ("perplexity of moejax", ours, "per token", "lower"),
        ("perplexity of llama.cpp", theirs, "per token", "lower"),
        ("perplexities differ by", apart, "relative", "lower"),
    )
    n = sums.positions
    return [
        Measure(f"{name}: {what}", float(value), unit, better, n) for what, value, unit, better in figures
    ]


def _exact_measures(name: str, sums: Sums) -> list[Measure]:
    divergence, n = sums.divergence / sums.positions, sums.positions
    return [
        Measure(f"{name}: {AGREEMENT}, in F32", sums.same / n, "share", "higher", n),
        Measure(f"{name}: {KL}, in F32", EXACT_NATS / max(divergence, 1e-12), "x", "higher", n),
        Measure(f"{name}: mean divergence, in F32", divergence, "nats", "lower", n),
    ]


def _bars(name: str, exact: bool) -> tuple[Bar, ...]:
    wanted = [(AGREEMENT, LEAST), (KL, 1.0), (PERPLEXITY, 1.0)] + [(f"{KL}, in F32", 1.0)] * exact
    return tuple(Bar(f"{name}: {what}", least) for what, least in wanted)


def _has_llama_cpp(python: str) -> bool:
    return subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode == 0


def _llama_cpp(python: str) -> Peer:
    """llama.cpp in a process of its own, one text at a time."""

    @contextlib.contextmanager
    def peer(path: str, texts: Texts):
        window = texts.shape[1]
        command = [python, str(PEER), path, str(window)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as own:
            about = json.loads(own.stdout.readline())

            def answers():
                for ids_T in texts:
                    own.stdin.write(ids_T.tobytes())
                    own.stdin.flush()
                    for at in range(0, window, ROWS):
                        rows = min(ROWS, window - at)
                        raw = own.stdout.read(4 * rows * about["vocab"])
                        yield np.frombuffer(raw, np.float32).reshape(rows, -1)

            yield about, answers()
            own.stdin.close()

    return peer


def define(values: flags.FlagValues) -> None:
    """The flags of the benchmark."""
    flags.DEFINE_list("models", [], "paths of GGUF files", flag_values=values)
    flags.DEFINE_string("text", "", "path of a text", flag_values=values)
    for name, default, meaning in (
        ("tokens", 4096, "of the text"),
        ("window", 4096, "tokens seen at a time"),
    ):
        flags.DEFINE_integer(name, default, meaning, lower_bound=2, flag_values=values)
    flags.DEFINE_string("python", sys.executable, "a Python that has llama-cpp-python", flag_values=values)
    flags.DEFINE_boolean("exact", True, "compare in F32 too, with a copy of the file", flag_values=values)
    flags.DEFINE_string("json", None, "write the report there too", flag_values=values)


def main(call: Call) -> None:
    """Flags to a run of the benchmark."""
    values = {
        name: call.flags[name].value for name in ("models", "text", "tokens", "window", "python", "exact")
    }
    require(bool(values["models"] and values["text"]), "give --models=FILE.gguf,... and --text=FILE")
    finish(run(GgufAgreement(**values | {"models": tuple(values["models"])})), call.flags["json"].value)


PROGRAM = Program("python -m moejax.bench gguf", SUMMARY, define, main, takes_config=False)
