"""What `serve.py` does: a model, prompts in, completions out."""

import contextlib
import itertools
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from absl import flags

from moejax import compile_cache
from moejax.config import require
from moejax.errors import DataError, UsageError
from moejax.flags import Call, Program
from moejax.serving.output import detach_standard_output, open_output
from moejax.serving.request import MAX_SEED, MAX_TEMPERATURE, Sampling

SUMMARY = """
Continue texts with a trained model.

    python serve.py --model=runs/default --prompt="def main("
    echo "def main(" | python serve.py --model=runs/default --prompt=-
    python serve.py --model=runs/default --input=prompts.jsonl --output=out.jsonl --max_tokens=64

An input line is {"prompt": "..."} or {"messages": [...]} with any of id, max_tokens, temperature, top_k,
top_p and seed; or a line of an OpenAI batch file for /v1/completions or /v1/chat/completions; or, in a file
that is not JSON, the prompt itself. Each gets one line of output, in the same order. The line of a request
that cannot be answered says why.
"""
ROWS = 8  # of a group when many prompts are answered
GROUPS = 16  # read, answered and written at a time
REPORT_SECONDS = 5.0


def define(values: flags.FlagValues) -> None:
    """The flags of serve.py."""
    text, whole, number = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
    text("model", None, "directory of a training run, or of moejax.save", flag_values=values)
    text("prompt", None, "text to continue; - reads it from standard input", flag_values=values)
    text("input", None, "file with one request per line; - is standard input", flag_values=values)
    text("output", "-", "file for the answers; - is standard output", flag_values=values)
    whole("max_tokens", 64, "tokens of a completion, at most", flag_values=values)
    number("temperature", 0.0, f"0 to {MAX_TEMPERATURE:g}; 0 takes the most likely token", flag_values=values)
    whole("top_k", 0, "choose among the k most likely tokens; 0 = all", flag_values=values)
    number("top_p", 1.0, "choose among the fewest tokens with this probability together", flag_values=values)
    whole("seed", 0, f"of the sampling, 0 to {MAX_SEED}", flag_values=values)
    whole("step", None, "of which checkpoint; by default the newest", lower_bound=0, flag_values=values)
    text(
        "trace",
        None,
        "file, .npz, for the routing of every token that was read or written",
        flag_values=values,
    )
    whole("batch_rows", ROWS, "requests decoded together", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("strict", False, "exit with 65 if a line could not be answered", flag_values=values)


def run(call: Call) -> None:
    """Check the flags, load the model, answer."""
    values = {name: call.flags[name].value for name in call.flags}
    require(
        bool(values["model"]), "--model is missing; give the directory of a run, as in --model=runs/default"
    )
    if (values["prompt"] is None) == (values["input"] is None):
        raise UsageError('give either --prompt="some text" or --input=FILE')
    defaults = Sampling(**{name: values[name] for name in Sampling.__annotations__})
    _check_trace(values["trace"])
    try:
        if values["prompt"] is None:
            _answer_lines(values, defaults)
        else:
            _answer_prompt(values, defaults)
    except BrokenPipeError:  # the reader has seen enough
        detach_standard_output()


def _answer_prompt(values: dict, defaults: Sampling) -> None:
    prompt = _read_prompt() if values["prompt"] == "-" else values["prompt"]
    output = open_output(values["output"])
    model = _load(values)
    from moejax.serving.batch_file import Job, answer
    from moejax.serving.generate import complete
    from moejax.serving.request import make_request

    job = Job(1, False, 1, make_request(model, prompt, defaults))
    tally = Tally()
    with _tracing(values["trace"]) as recorder:
        ((_, completion),) = complete(model, [job.request], 1, recorder)
    tally.add(completion)
    with output:
        as_text = values["output"] == "-"
        output.write([completion.text if as_text else answer(job, completion, values["model"])])
    tally.report("done: ")


def _answer_lines(values: dict, defaults: Sampling) -> None:
    output = open_output(values["output"])
    with _open_input(values["input"]) as stream:
        model = _load(values)
        from moejax.serving.batch_file import Reader, answer, read_lines

        is_json = True if values["input"].endswith((".jsonl", ".json")) else None
        name = "standard input" if values["input"] == "-" else values["input"]
        jobs = Reader(model, defaults, name, is_json).jobs(read_lines(stream))
        tally = Tally()
        with output, _tracing(values["trace"]) as recorder:
            for answered in _completed(model, jobs, values["batch_rows"], recorder):
                output.write([answer(job, completion, values["model"]) for job, completion in answered])
                tally.add(*(completion for _, completion in answered))
                tally.report_sometimes()
    tally.report("done: ")
    if tally.errors and values["strict"]:
        raise DataError(
            f"{tally.errors} of {tally.requests} lines could not be answered; the output says why"
        )


def _completed(model, jobs: Iterator, rows: int, recorder) -> Iterator[list]:
    """A few groups of jobs at a time, in their order, each job with its completion or None."""
    from moejax.serving.generate import complete

    while window := list(itertools.islice(jobs, GROUPS * rows)):
        good = [job for job in window if job.request]
        done = complete(model, [job.request for job in good], rows, recorder)
        completion_of = {good[i].number: completion for i, completion in done}
        yield [(job, completion_of.get(job.number)) for job in window]


def _check_trace(path: str | None) -> None:
    """Refuse what no trace can be written to, before the work."""
    if path is not None:
        folder = Path(path).parent
        require(folder.is_dir(), f"--trace={path}: there is no directory {str(folder)!r}; make it first")
        require(not Path(path).is_dir(), f"--trace={path} is a directory; name a file in it")


@contextlib.contextmanager
def _tracing(path: str | None):
    """A recorder whose trace is in `path` in the end; None without a path."""
    if path is None:
        yield None
        return
    from moejax.tracing import TraceRecorder

    recorder = TraceRecorder()
    yield recorder
    if recorder.num_rows:
        recorder.trace().save(path)


def _read_prompt() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: {error}") from None


@contextlib.contextmanager
def _open_input(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"--input={path} cannot be read: {error.strerror}") from None
    with stream:
        yield stream


def _load(values: dict):
    """The model; jax is first imported here, after all that can be refused without it."""
    model = Path(values["model"])
    require(model.is_dir(), f"--model={model} is no directory; give the --workdir of a training run")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    from moejax.model_io import load
    from moejax.serving.causal import causal
    from moejax.serving.unroll import unrolled

    compile_cache.use()
    return unrolled(causal(load(model, step=values["step"])))


class Tally:
    """Counts answers and says on standard error how it goes: on a terminal always, else every few seconds."""

    def __init__(self):
        self.requests = self.errors = self._prompt_tokens = self._tokens = 0
        self._begin = self._reported = time.monotonic()

    def add(self, *completions) -> None:
        """Count answers; None is an error."""
        good = [completion for completion in completions if completion is not None]
        self.requests += len(completions)
        self.errors += len(completions) - len(good)
        self._prompt_tokens += sum(completion.prompt_tokens for completion in good)
        self._tokens += sum(len(completion.tokens) for completion in good)

    def report_sometimes(self) -> None:
        """Report if somebody watches or if it was long ago."""
        now = time.monotonic()
        if sys.stderr.isatty() or now - self._reported >= REPORT_SECONDS:
            self.report()
            self._reported = now

    def report(self, before: str = "") -> None:
        """Print one line."""
        seconds = time.monotonic() - self._begin
        print(
            f"{before}requests={self.requests} errors={self.errors} prompt_tokens={self._prompt_tokens} "
            f"tokens={self._tokens} seconds={seconds:.1f} tok/s={self._tokens / max(seconds, 1e-9):.0f}",
            file=sys.stderr,
        )


PROGRAM = Program("python serve.py", SUMMARY, define, run, takes_config=False)
