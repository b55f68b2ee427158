"""What a finished run leaves to look at: text samples, who takes which tokens, and the report."""

import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from moejax import durable, sharding
from moejax.model.forward import forward
from moejax.model_io import Model
from moejax.serving.generate import generate
from moejax.training import objective, report
from moejax.training.data.corpus import Corpus
from moejax.training.evaluation import own_held_out
from moejax.training.program import Program
from moejax.training.report.token_kinds import KINDS, token_kinds

PROMPTS = ("def ", "import ", "class ", "    for ", "    return ")
SAMPLE_TOKENS = 96
SAMPLE_BYTES = 2 * 2**30  # of parameters that one device may be asked to hold for the samples
KIND_ROWS = 64  # held-out rows whose routing is counted

log = logging.getLogger(__name__)


def write_all(run_dir: pathlib.Path, program: Program, state, corpus: Corpus) -> None:
    """routing.npz, samples.jsonl and report.html."""
    with program.mesh_context():
        routing = kind_loads(program, state, corpus)
        whole = on_one_device(program, state)
    if jax.process_index() != 0:
        return
    np.savez(run_dir / "routing.npz", **routing)
    if whole is None:
        log.info(
            "no text samples: the parameters are larger than %.0f GiB; serve.py writes some",
            SAMPLE_BYTES / 2**30,
        )
    else:
        try:
            write_samples(run_dir, program, *whole, corpus)
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


def kind_loads(program: Program, state, corpus: Corpus) -> dict[str, np.ndarray]:
    """kind_load_LKE: of the routed slots of one kind of token, the share of each expert; and kind_names.

    Empty for models whose layers do not all have the same number of experts.
    """
    m = program.run.model
    kind_V = token_kinds(corpus.tokenizer.decode([token]) for token in range(m.vocab))

    def probe(out, batch):
        if out.routing is None:
            return {}
        E = out.routing.score_BTE.shape[-1]
        kind_BTC = batch.extra["kind"][..., None] == jnp.arange(len(KINDS))[None, None]
        kind_BTC &= batch.valid_BT[..., None]
        hit_BTE = jnp.sum(out.routing.expert_BTK[..., None] == jnp.arange(E)[None, None, None], axis=2)
        slots_CE = jnp.einsum(
            "BTC,BTE->CE", kind_BTC.astype(float), hit_BTE.astype(float), out_sharding=sharding.out("CE")
        )
        return {"slots_CE": slots_CE}

    @jax.jit
    def count(state, batch):
        sides = objective.sides_of(m, program.losses, state.loss_state)
        return forward(state.params, m, batch, sides=sides, probe=probe).probes

    total = None
    for host in own_held_out(program, corpus, KIND_ROWS):
        batch = program.place(host | {"kind": kind_V[host["token"]]})
        layers = [np.asarray(seen["slots_CE"]) for group in count(state, batch) for seen in group if seen]
        if len({layer.shape for layer in layers}) != 1:
            return {}
        slots_LCE = np.concatenate(layers)
        total = slots_LCE if total is None else total + slots_LCE
    share_LCE = total / np.maximum(total.sum(axis=-1, keepdims=True), 1)
    return {"kind_load_LKE": share_LCE, "kind_names": np.array(KINDS)}
