"""What `serve.py` does: a model, prompts in, completions out."""

import contextlib
import logging
import os
import sys
import time
import typing
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

import moejax
from moejax import compile_cache
from moejax.config import require
from moejax.errors import DataError, UsageError
from moejax.flags import Call, Program
from moejax.serving.input import Input, open_input, read_prompt, sample_lines
from moejax.serving.output import Output, OutputFile, check_place, detach_standard_output, open_output
from moejax.serving.request import MAX_LOGPROBS, MAX_STOPS, MAX_TEMPERATURE, Sampling
from moejax.serving.tally import Progress, Tally, write_summary

if typing.TYPE_CHECKING:  # they import jax
    from moejax.serving.answers import Answers
    from moejax.serving.batch_file import Job

SUMMARY = """
Continue texts with a trained model.

    python serve.py --model=runs/default --prompt="def main("
    echo "def main(" | python serve.py --model=runs/default --prompt=-
    python serve.py --model=smollm2 --input=prompts.jsonl --output=out.jsonl --max_tokens=64
    python serve.py --model=smollm2                                               a few prompts of our own

An input line is {"prompt": "..."} or {"messages": [...]} with any of id, max_tokens, temperature, top_k,
top_p, min_p, seed, stop and logprobs; or a line of an OpenAI batch file for /v1/completions or
/v1/chat/completions; or, in a file that is not JSON, the prompt itself. Each gets one line of output, in the
same order. The line of a request that cannot be answered says why. Answers of a job that was stopped are in
OUTPUT.part, from which the same command with --resume goes on.
"""
ROWS = 64  # requests decoded together
STATUS_OK, STATUS_BAD = 200, 400  # of an answer, as HTTP has them
SCHEDULERS = ["chunked", "fcfs", "layered", "packing", "shared_prefix"]
# On which answers depend, beside those of the sampling.
OTHER_SETTINGS = ("dtype", "weights", "step", "batch_rows", "exact", "scheduler")


def define(values: flags.FlagValues) -> None:
    """The flags of serve.py."""
    text, whole, yes = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_boolean
    what = "directory of a run or of the hub's layout, GGUF file, or name such as smollm2"
    text("model", None, what, flag_values=values)
    text("prompt", None, "text to continue; - reads it from standard input", flag_values=values)
    text("input", None, "file with one request per line; - is standard input", flag_values=values)
    text("output", "-", "file for the answers; - is standard output", flag_values=values)
    yes("resume", False, "go on with an --output that was stopped", flag_values=values)
    yes("strict", False, "exit with 65 if a line could not be answered", flag_values=values)
    text("summary", None, "file, .json, for counts, speed and waiting times", flag_values=values)
    text("trace", None, "file, .npz, for the routing of every token", flag_values=values)
    _define_sampling(values)
    dtypes = ["float32", "bfloat16"]
    flags.DEFINE_enum("dtype", None, dtypes, "to compute a foreign model in", flag_values=values)
    kept = "in memory: float; file, as a GGUF file has them; bfloat16 or int8, with products in as many bits"
    kinds = ["float", "file", "bfloat16", "int8"]
    flags.DEFINE_enum("weights", "float", kinds, kept, flag_values=values)
    yes("offline", False, "look for a name only in the cache of the hub", flag_values=values)
    whole("step", None, "of which checkpoint; by default the newest", lower_bound=0, flag_values=values)
    whole("batch_rows", ROWS, "requests decoded together", lower_bound=1, flag_values=values)
    yes("exact", False, "no last digit depends on the other requests; reads slower", flag_values=values)
    schedulers = "who is served when: chunked, fcfs, layered, packing or shared_prefix; changes no text"
    flags.DEFINE_enum("scheduler", "chunked", SCHEDULERS, schedulers, flag_values=values)


def _define_sampling(values: flags.FlagValues) -> None:
    """One flag per field of `Sampling`: what holds where a line says nothing."""
    whole, number = flags.DEFINE_integer, flags.DEFINE_float
    whole("max_tokens", 64, "tokens of a completion, at most", flag_values=values)
    number("temperature", 0.0, f"0 to {MAX_TEMPERATURE:g}; 0 takes the most likely token", flag_values=values)
    whole("top_k", 0, "choose among the k most likely tokens; 0 = all", flag_values=values)
    number("top_p", 1.0, "choose among the fewest tokens with this probability together", flag_values=values)
    number("min_p", 0.0, "choose among tokens with this share of the best one's", flag_values=values)
    whole("seed", 0, "of the sampling", flag_values=values)
    stops = f"text before which a completion ends; at most {MAX_STOPS}"
    flags.DEFINE_multi_string("stop", None, stops, flag_values=values)
    whole("logprobs", None, f"0 to {MAX_LOGPROBS}: tell log-probabilities, and so many likeliest others",
          flag_values=values)  # fmt: skip


def run(call: Call) -> None:
    """Check the flags, load the model, answer."""
    values = {name: call.flags[name].value for name in call.flags}
    require(
        bool(values["model"]), "--model is missing; give the directory of a run, as in --model=runs/default"
    )
    if values["prompt"] is not None and values["input"] is not None:
        raise UsageError('give either --prompt="some text" or --input=FILE')
    values["stop"] = values["stop"] or []
    defaults = Sampling(**{name: values[name] for name in Sampling.__annotations__})
    for name in ("trace", "summary"):
        if values[name] is not None:
            check_place(name, values[name])
    output = open_output(values["output"], values["resume"])
    try:
        if values["input"] is not None:
            _answer_file(values, defaults, output)
        else:
            _answer_prompts(values, defaults, output)
    except BrokenPipeError:  # the reader has seen enough
        detach_standard_output()


def _answer_file(values: dict, defaults: Sampling, output: Output) -> None:
    """One answer per line of --input."""
    with open_input(values["input"]) as source:
        if values["resume"]:
            _check_resume(values, source)
            if output.is_whole:
                return _check_whole(output, source)
        with output:
            model = _load(values)
            from moejax.serving.batch_file import Reader, read_lines

            form = _begin(output, model, values, source.identity)
            before = dict(output.statuses)
            reader = Reader(model, defaults, source.name, source.is_json)
            jobs = reader.jobs(read_lines(source.stream), before)
            errors = sum(status != STATUS_OK for status in before.values())
            tally = Tally(time.monotonic(), source.total, len(before), errors)
            _answer(model, jobs, output, form.line, Progress(tally), values)
    _close(tally, values)


def _answer_prompts(values: dict, defaults: Sampling, output: Output) -> None:
    """The one --prompt, or a few of our own; on standard output as text."""
    require(not values["resume"], "--resume goes on with a file of requests; give --input=FILE")
    prompt = read_prompt() if values["prompt"] == "-" else values["prompt"]
    with output:
        model = _load(values)
        from moejax.serving.batch_file import Job, Reader
        from moejax.serving.request import make_request

        if prompt is None:
            jobs = list(Reader(model, defaults, "samples", is_json=True).jobs(sample_lines(model)))
            line = lambda job, completion: (
                f"> {job.id}\n{completion.text.strip() if completion else job.error}\n"
            )
        else:
            jobs = [Job(1, False, 1, make_request(model, prompt, defaults))]
            line = lambda job, completion: completion.text
        form = _begin(output, model, values, {"prompt": prompt})
        tally = Tally(time.monotonic(), len(jobs))
        as_text = values["output"] == "-" and values["logprobs"] is None
        _answer(model, iter(jobs), output, line if as_text else form.line, Progress(tally), values)
    _close(tally, values)


def _check_resume(values: dict, source: Input) -> None:
    require(
        "sha256" in source.identity,
        f"--resume reads the input again from its beginning, which {source.name} has no more; give a file",
    )
    require(values["trace"] is None, "--trace notes one process alone; leave it out, or --resume")


def _check_whole(output: OutputFile, source: Input) -> None:
    """Say that there is nothing to do, if the output can be that of the input."""
    with open(output.path, "rb") as file:
        count = sum(1 for _ in file)
    if count != source.total:
        raise DataError(
            f"{output.path} is whole with {count} answers, but {source.name} has {source.total} requests: "
            "it is of another job; remove it, or give another --output"
        )
    print(f"{output.path} is whole already; remove it to answer anew", file=sys.stderr)


def _begin(output: Output, model, values: dict, source: dict[str, Any]) -> "Answers":
    """Tell the output what is to be done; how the answers are written."""
    from moejax.serving.answers import Answers
    from moejax.serving.identity import crc32

    begun = output.begin(
        {
            "moejax": moejax.__version__,
            "created": int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()),
            "input": source,
            "model": {"name": values["model"], "crc32": crc32(model) if values["output"] != "-" else None},
            "settings": {name: values[name] for name in (*Sampling.__annotations__, *OTHER_SETTINGS)},
        }
    )
    return Answers(values["model"], begun["created"], model.tokenizer)


def _answer(
    model, jobs: Iterator["Job"], output: Output, line: Callable[..., str], progress: Progress, values: dict
) -> None:
    """Answer every job; `line` makes the answer of a job and its completion."""
    with progress, _tracing(values["trace"]) as recorder:
        from moejax.serving.answering import Answering

        tally = progress.tally
        how = {name: values[name] for name in ("scheduler", "exact")}
        answering = Answering(model, values["batch_rows"], tally.total, **how, recorder=recorder)
        tally.engine = answering.counts
        for job, completion in answering(jobs, lambda job: output.expect(job.number)):
            output.add(job.number, STATUS_BAD if completion is None else STATUS_OK, line(job, completion))
            progress.add(completion)


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


def _load(values: dict):
    """The model; jax is first imported here, after all that can be refused without it."""
    from moejax.model_files.inspect import place

    path = place(values["model"], values["offline"])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    from moejax.model_io import load
    from moejax.serving.causal import causal
    from moejax.serving.short_weights import in_bfloat16, in_int8
    from moejax.serving.unroll import unrolled

    compile_cache.use()
    shorten = {"bfloat16": in_bfloat16, "int8": in_int8}
    in_file = values["weights"] == "file"
    model = load(path, dtype=values["dtype"], step=values["step"], keep_quantised=in_file)
    return unrolled(causal(shorten.get(values["weights"], lambda model: model)(model)))


def _close(tally: Tally, values: dict) -> None:
    """Say what was done."""
    now = time.monotonic()
    print(*tally.closing(now), sep="\n", file=sys.stderr)
    write_summary(values["summary"], tally.summary(now))
    if tally.errors and values["strict"]:
        raise DataError(
            f"{tally.errors} of {tally.requests} lines could not be answered; the output says why"
        )


PROGRAM = Program("python serve.py", SUMMARY, define, run, takes_config=False)
