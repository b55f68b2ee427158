"""What a finished run leaves to look at: text samples, the routing of held-out text, and the report."""

import json
import logging
import pathlib

import jax
import numpy as np

from moejax import durable, sharding
from moejax.analysis.routing.trace import RoutingTrace
from moejax.errors import UsageError
from moejax.serving.generate import generate
from moejax.serving.model import Model
from moejax.training import objective, report
from moejax.training.data.corpus import Corpus
from moejax.training.evaluation import own_held_out
from moejax.training.program import Program
from moejax.training.report.token_kinds import KINDS, token_kinds
from moejax.training.tracer import Tracer

PROMPTS = ("def ", "import ", "class ", "    for ", "    return ")
SAMPLE_TOKENS = 96
SAMPLE_BYTES = 2 * 2**30  # of parameters that one device may be asked to hold for the samples
TRACED_ROWS = 64  # held-out rows whose routing is kept

log = logging.getLogger(__name__)


def write_all(run_dir: pathlib.Path, program: Program, state, corpus: Corpus) -> None:
    """routing.npz, samples.jsonl and report.html."""
    with program.mesh_context():
        trace = held_out_trace(program, state, corpus)
        whole = on_one_device(program, state)
    if jax.process_index() != 0:
        return
    if trace is not None:
        trace.save(run_dir / "routing.npz")
    if whole is None:
        log.info(
            "no text samples: the parameters are larger than %.0f GiB; serve.py writes some",
            SAMPLE_BYTES / 2**30,
        )
    else:
        try:
            write_samples(run_dir, program, *whole, corpus)
        except UsageError as error:  # a router that looks at later tokens
            log.warning("no text samples: %s", error)
        except Exception:  # the report is worth more than its samples
            log.exception("no text samples, because of this error; the report is written without them")
    report.write(run_dir)


def on_one_device(program: Program, state):
    """(params, loss state) whole, in the memory of this process; None if they are too large for that."""
    wanted = (state.params, state.loss_state)
    if sum(x.nbytes for x in jax.tree.leaves(wanted)) > SAMPLE_BYTES:
        return None
    if program.mesh is None:
        return wanted
    whole = jax.jit(lambda tree: jax.tree.map(sharding.whole, tree))(wanted)
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), whole)


def write_samples(run_dir: pathlib.Path, program: Program, params, loss_state, corpus: Corpus) -> None:
    """What the model writes after a few beginnings."""
    run = program.run
    sides = objective.sides_of(run.model, program.losses, loss_state)
    model = Model(run.model, params, corpus.tokenizer, run.train.seq_len, sides)
    prompts = [prompt for prompt in PROMPTS if len(corpus.tokenizer.encode(prompt)) + 1 < run.train.seq_len]
    if not prompts:
        log.info("no text samples: train.seq_len=%d leaves no room after a prompt", run.train.seq_len)
        return
    seeds = [run.train.seed + i for i in range(len(prompts))]  # or all would begin alike
    completions = generate(model, prompts, max_tokens=SAMPLE_TOKENS, temperature=0.7, seed=seeds)
    lines = [
        json.dumps({"step": run.train.steps, "prompt": prompt, "text": completion.text})
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    durable.write_file(run_dir / "samples.jsonl", ("\n".join(lines) + "\n").encode())


def held_out_trace(program: Program, state, corpus: Corpus) -> RoutingTrace | None:
    """The routing of some held-out rows, tokens labelled by kind; None for a model without routers."""
    m, train = program.run.model, program.run.train
    tracer = Tracer(program, train.batch_rows, scores=True)
    if not tracer.has_routers:
        return None
    batches = map(program.place, own_held_out(program, corpus, TRACED_ROWS))
    trace = tracer.trace(state, batches, train.steps)
    kind_V = token_kinds(corpus.tokenizer.decode([token]) for token in range(m.vocab))
    return trace.labelled(kind_V[trace.token_N], KINDS)
