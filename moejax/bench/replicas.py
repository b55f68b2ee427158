"""Training the same model from several seeds at once: one program, a seed on every device.

`jax.pmap` over the local devices, virtual ones on CPU. A seed decides the start values and the order of the
data, so arms that are trained with equal seeds can be compared in pairs.
"""

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import moejax
from moejax.bench.domains import Domains
from moejax.config import Run, require
from moejax.model import forward as decoder
from moejax.serving.model import Model
from moejax.training import objective, program, step
from moejax.training import state as train_state
from moejax.training.data import cache as store
from moejax.training.data.batches import BatchSource, held_out_batches
from moejax.training.program import Program

MOST_STEPS = 25  # of one call of the compiled program
FORMAT = 1  # raise it when the same run begins to give another model


@dataclasses.dataclass(frozen=True)
class Watch:
    """What is noted of every replica in the course of training."""

    name: str  # says what `see` depends on beside run and text; kept notes are found again by it
    every: int  # steps
    see: Callable[[Any], dict[str, jax.Array]]  # of the parameters


@dataclasses.dataclass(frozen=True)
class Trained:
    """One run's outcome."""

    seed: int
    model: Model
    loss_S: np.ndarray  # float32, next-token loss of every step
    held_out: dict[str, float]  # nats per token, by domain
    seconds: float  # of the group of seeds that trained side by side
    seen: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # notes, leading dim: when

    @property
    def held_out_loss(self) -> float:
        """Mean over domains, in nats per token."""
        return float(np.mean(list(self.held_out.values())))


def train(
    run: Run, text: Domains, seeds: Sequence[int], cache: str | None = "", watch: Watch | None = None
) -> list[Trained]:
    """Train `run` once per seed.

    Args:
      run: without a mesh; its own seed and data do not count.
      text: to train on and to measure with.
      seeds: one replica each; as many train at a time as there are devices.
      cache: folder where finished models are found again; "" = the user's cache, None = nowhere.
      watch: what to note in the course of training.

    Raises:
      UsageError: the run has a mesh, or its vocabulary or rows are not those of the text.
    """
    require(
        math.prod(dataclasses.astuple(run.mesh)) == 1, f"{run.name} has a mesh; replicas have a device each"
    )
    T, vocab = text.train.seq_len, text.tokenizer.vocab
    require(run.train.seq_len == T, f"train.seq_len={run.train.seq_len}, but the text's rows have {T} tokens")
    require(
        run.model.vocab >= vocab, f"model.vocab={run.model.vocab} is less than the tokenizer's {vocab} ids"
    )
    bound = program.build(run)
    places = {seed: _place(run, text, seed, cache, watch) for seed in seeds}
    done = {seed: _kept(bound, text, seed, place) for seed, place in places.items() if place}
    done = {seed: found for seed, found in done.items() if found is not None}
    missing, width = [seed for seed in seeds if seed not in done], jax.local_device_count()
    for group in (missing[i : i + width] for i in range(0, len(missing), width)):
        for found, leaves in _group(bound, text, group, watch):
            done[found.seed] = found
            if places[found.seed]:
                _keep(found, leaves, places[found.seed])
    return [done[seed] for seed in seeds]


def _group(bound: Program, text: Domains, seeds: list[int], watch: Watch | None):
    """Trained models of as many seeds as there are devices, each with the leaves to keep."""
    begin = time.monotonic()
    keys = jax.numpy.stack([jax.random.key(seed) for seed in seeds])
    state = jax.pmap(functools.partial(_start, bound=bound))(keys)
    steps = jax.pmap(functools.partial(_steps, bound=bound), donate_argnums=0)
    sources = [BatchSource(text.train, bound.run.train.batch_rows, seed) for seed in seeds]
    look = None if watch is None else jax.pmap(watch.see)
    losses, notes = [], []
    for first, count in _calls(bound.run.train.steps, watch):
        host = [_stacked([source[first + i] for i in range(count)]) for source in sources]
        state, loss = steps(state, keys, program.as_batch(_stacked(host)))
        losses.append(loss)
        if look and (first + count) % watch.every == 0:
            notes.append(jax.tree.map(np.asarray, look(state.params)))
    loss_RS = np.concatenate([np.asarray(loss) for loss in losses], axis=1)
    sums = jax.pmap(functools.partial(_sums, bound=bound), in_axes=(0, 0, None))
    held_out = {name: _nats(sums, bound, state, rows) for name, rows in text.held_out.items()}
    seconds = time.monotonic() - begin
    for r, seed in enumerate(seeds):
        own = jax.tree.map(lambda leaf, r=r: np.asarray(leaf[r]), (state.params, state.loss_state))
        nats = {name: float(value_R[r]) for name, value_R in held_out.items()}
        seen = jax.tree.map(lambda *each, r=r: np.stack([x[r] for x in each]), *notes) if notes else {}
        found = Trained(seed, _model(bound, text, *own), loss_RS[r], nats, seconds, seen)
        yield found, jax.tree.leaves(own)


def _calls(steps: int, watch: Watch | None) -> list[tuple[int, int]]:
    """(first step, how many) of every call: equal ones, so that one program is compiled, and a rest."""
    size = min(MOST_STEPS, steps)
    if watch is not None:  # a call ends whenever there is something to note
        size = next(size for size in range(size, 0, -1) if watch.every % size == 0)
    return [(first, min(size, steps - first)) for first in range(0, steps, size)]


def _stacked(parts: list[dict]) -> dict:
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def _start(key, *, bound: Program):
    key = jax.random.fold_in(key, 0)
    return train_state.init(key, bound.run.model, bound.losses, bound.optimizer)


def _steps(state, key, batches, *, bound: Program):
    """As many optimiser steps as there are batches; (state, next-token loss of each)."""
    settings = bound.run.train
    one = functools.partial(
        step.train_step,
        key=jax.random.fold_in(key, 1),
        m=bound.run.model,
        losses=bound.losses,
        optimizer=bound.optimizer,
        accumulate=settings.accumulate,
        spike_factor=settings.spike_factor,
    )

    def body(state, batch):
        state, metrics = one(state, batch)
        return state, metrics["loss/next_token"]

    return jax.lax.scan(body, state, batches)


def _sums(params, loss_state, batch, *, bound: Program):
    """(summed nats, targets) of a batch."""
    losses = bound.losses
    text = next(index for index, loss in enumerate(losses) if loss.measures_text)
    seen = step.eval_step(params, loss_state, batch, m=bound.run.model, losses=losses)[text]
    return seen["nll"], seen["weight"]


def _nats(sums, bound: Program, state, rows) -> np.ndarray:
    """Held-out nats per token of every replica."""
    nats = weight = 0.0
    for host in held_out_batches(rows, bound.run.train.batch_rows):
        parts = sums(state.params, state.loss_state, program.as_batch(host))
        nats, weight = nats + np.asarray(parts[0], float), weight + np.asarray(parts[1], float)
    return nats / weight


def _model(bound: Program, text: Domains, params, loss_state) -> Model:
    sides = objective.sides_of(bound.run.model, bound.losses, loss_state)
    sides = sides if jax.tree.leaves(sides) else None
    return Model(bound.run.model, params, text.tokenizer, bound.run.train.seq_len, sides)


def _place(run: Run, text: Domains, seed: int, cache: str | None, watch: Watch | None):
    """Where a finished model of this run is kept."""
    if cache is None:
        return None
    own = dataclasses.replace(run, name="", data=type(run.data)())
    facts = [FORMAT, moejax.__version__, jax.__version__, repr(own), text.fingerprint, seed]
    facts += [] if watch is None else [watch.name, watch.every]
    return store.directory(cache) / "replicas" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _keep(found: Trained, leaves: list[np.ndarray], place) -> None:
    meta = {"held_out": found.held_out, "seconds": found.seconds}
    arrays = {f"leaf_{i}": leaf for i, leaf in enumerate(leaves)} | {"loss": found.loss_S}
    arrays |= {f"seen_{name}": value for name, value in found.seen.items()}
    store.store(place, store.Entry(meta, arrays))


def _kept(bound: Program, text: Domains, seed: int, place) -> Trained | None:
    """A model that was trained before."""
    entry = store.load(place)
    if entry is None:
        return None
    m = bound.run.model
    shapes = jax.eval_shape(
        lambda key: (decoder.init(key, m), tuple(x.init(m) for x in bound.losses)), jax.random.key(0)
    )
    tree = jax.tree.structure(shapes)
    own = tree.unflatten([np.asarray(entry.arrays[f"leaf_{i}"]) for i in range(tree.num_leaves)])
    loss_S = np.asarray(entry.arrays["loss"])
    seen = {
        name.removeprefix("seen_"): np.asarray(value)
        for name, value in entry.arrays.items()
        if name.startswith("seen_")
    }
    meta = entry.meta
    return Trained(seed, _model(bound, text, *own), loss_S, meta["held_out"], meta["seconds"], seen)
