"""`python -m moejax.analysis RUN`: what the routers of a run do with text that it was not trained on."""

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from moejax import durable
from moejax.config import Run, require
from moejax.errors import CheckpointError, StorageError, UsageError
from moejax.flags import Call, Program, main

SUMMARY = """
Say what the routers of a run do with its held-out text.

    python -m moejax.analysis runs/default
    python -m moejax.analysis runs/default --out=figures/routing.html
    python -m moejax.analysis runs/default --trace=a.npz --trace=b.npz

The newest checkpoint is analysed and compared with the earlier ones that the run has kept; or, of the given
traces, that of the latest step with the others. RUN/analysis.html and RUN/analysis.json are written.
"""
ROWS = 64  # of the held-out text, evenly spread
BATCH_ROWS = 8
MOST_CHECKPOINTS = 8  # that are compared


def define(values: flags.FlagValues) -> None:
    """The flags of the analysis."""
    flags.DEFINE_string(
        "run", None, "directory of a training run; may be given without --run=", flag_values=values
    )
    flags.DEFINE_string("out", None, "file of the page; by default RUN/analysis.html", flag_values=values)
    flags.DEFINE_multi_string(
        "trace", [], "trace to analyse instead of a checkpoint; several", flag_values=values
    )
    flags.DEFINE_integer("rows", ROWS, "held-out rows that are traced", lower_bound=1, flag_values=values)


def run(call: Call) -> None:
    """Check the paths, get the traces, write the page and the figures."""
    name, out, paths, rows = (call.flags[flag].value for flag in ("run", "out", "trace", "rows"))
    require(bool(name), "which run? give its directory, as in python -m moejax.analysis runs/default")
    run_dir = pathlib.Path(name)
    require(run_dir.is_dir(), f"{name} is no directory; give the --workdir of a training run")
    out = pathlib.Path(out) if out else run_dir / "analysis.html"
    require(out.parent.is_dir(), f"--out={out}: there is no directory {str(out.parent)!r}; make it first")
    require(
        not out.is_dir() and out.suffix != ".json", f"--out={out} must be a file for a page, such as a.html"
    )
    from moejax.analysis.routing.page import render
    from moejax.analysis.routing.summary import summarise

    tokenizer = _tokenizer(run_dir)
    traces = _load(paths) if paths else trace_checkpoints(run_dir, rows)
    *others, latest = traces
    summary = summarise(latest, others)
    texts = {token: tokenizer.decode([token]) for token in sorted(set(latest.token_N.tolist()))}
    try:
        durable.write_file(out, render(summary, latest, texts).encode())
        durable.write_file(out.with_suffix(".json"), json.dumps(summary.to_dict(), indent=1).encode())
    except OSError as error:
        raise StorageError(f"the analysis cannot be written to {out}: {error.strerror}") from error
    print(
        f"done: {summary.tokens:,} tokens, {len(summary.layers)} layers; open {out}; figures in "
        f"{out.with_suffix('.json')}"
    )


def trace_checkpoints(run_dir: pathlib.Path, rows: int) -> list:
    """Traces of the same held-out rows by the checkpoints that a run has kept, the newest one last.

    Raises:
      UsageError: the directory holds no run, or the model has no routers.
      CheckpointError: there is no checkpoint yet, or none that is whole.
      DataError: the text is not there any more, or is other text.
    """
    from moejax import saved_model, tracing
    from moejax.training.data import manifest
    from moejax.training.data.batches import held_out_batches
    from moejax.training.data.corpus import prepare
    from moejax.training.program import as_batch
    from moejax.training.report.token_kinds import KINDS, token_kinds
    from moejax.training.step_store import StepStore

    config = saved_model.read_config(run_dir)
    require(
        isinstance(config, Run),
        f"{run_dir} holds a saved model without held-out text; give a run, or --trace",
    )
    steps = StepStore(run_dir).steps()
    if not steps:
        raise CheckpointError(f"{run_dir} has no checkpoint yet; train until one is saved")
    chosen = steps[:: -math.ceil(len(steps) / MOST_CHECKPOINTS)][::-1]  # evenly spread, with the newest
    corpus = prepare(config.data, config.model.vocab, config.train.seq_len)
    manifest.check_unchanged(json.loads((run_dir / "data.json").read_text()), corpus)
    kind_V = token_kinds(corpus.tokenizer.decode([token]) for token in range(config.model.vocab))
    traces = []
    for step in chosen:
        model = saved_model.load(run_dir, step=step)
        batches = map(as_batch, held_out_batches(corpus.held_out, BATCH_ROWS, rows))
        trace = tracing.trace_batches(model, batches, scores=True)
        trace = dataclasses.replace(trace, name=config.name, step=step)
        traces.append(trace.labelled(kind_V[trace.token_N], KINDS))
        print(f"traced checkpoint {step}", file=sys.stderr)
    return traces


def _load(paths: Sequence[str]) -> list:
    """Traces from files, that of the latest step last."""
    from moejax.analysis.routing.trace import RoutingTrace

    traces = [RoutingTrace.load(path) for path in paths]
    first = traces[0]
    for path, trace in zip(paths, traces, strict=True):
        require(
            trace.experts_L.tolist() == first.experts_L.tolist(),
            f"{paths[0]} and {path} are of models with {first.experts_L.tolist()} and "
            f"{trace.experts_L.tolist()} experts in their layers; give traces of one model",
        )
    return sorted(traces, key=lambda trace: -1 if trace.step is None else trace.step)


def _tokenizer(run_dir: pathlib.Path):
    from moejax.training.data import tokenizer

    path = run_dir / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"{run_dir} has no tokenizer.json; give the --workdir of a training run")
    return tokenizer.load(path)


PROGRAM = Program("python -m moejax.analysis", SUMMARY, define, run, takes_config=False)


def with_run(argv: Sequence[str]) -> list[str]:
    """The arguments with a first one that is no flag as --run."""
    return [f"--run={argv[0]}", *argv[1:]] if argv and not argv[0].startswith("-") else list(argv)


if __name__ == "__main__":
    sys.exit(main(PROGRAM, with_run(sys.argv[1:])))
