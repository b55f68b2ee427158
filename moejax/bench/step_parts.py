"""The train step of a run as contestants: the whole program, and its parts compiled apart."""

import functools

import jax
import numpy as np
import optax

from moejax.seams import Batch
from moejax.training import objective
from moejax.training.program import Program


def random_batches(program: Program, count: int) -> list[dict[str, np.ndarray]]:
    """Batches of uniform random tokens with a fixed seed; each row is one document."""
    train, vocab = program.run.train, program.run.model.vocab
    B, T = train.batch_rows, train.seq_len
    draw = np.random.default_rng(train.seed)
    made = []
    for _ in range(count):
        token = draw.integers(0, vocab, (B, T + 1), np.int32)
        pos = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
        ones = np.ones((B, T), np.int32)
        columns = {"token": token[:, :-1], "target": token[:, 1:], "pos": pos, "seg": ones}
        made.append({**columns, "weight": ones.astype(np.float32)})
    return made


class Step:
    """The compiled program that train.py runs, fed with its own last state."""

    def __init__(self, program: Program, batches: list[Batch]):
        self.compiled = program.compile_step()
        self.batches = batches
        self.state = program.init()
        self.losses = []  # next-token, of every step taken

    def __call__(self) -> None:
        batch = self.batches[len(self.losses) % len(self.batches)]
        self.state, metrics = jax.block_until_ready(self.compiled(self.state, batch))
        self.losses.append(metrics["loss/next_token"])


class Forward:
    """The objective without its gradient."""

    def __init__(self, program: Program, params, batch: Batch):
        loss = jax.jit(functools.partial(_objective, program))
        self.run = functools.partial(loss, params, batch)

    def __call__(self) -> None:
        jax.block_until_ready(self.run())


class Gradient:
    """The objective and its gradient, written over the last one as in a step no memory is new."""

    def __init__(self, program: Program, params, batch: Batch):
        def run(params, spare, batch):
            del spare
            return jax.value_and_grad(functools.partial(_objective, program))(params, batch)

        self.compiled = jax.jit(run, donate_argnums=1, keep_unused=True)
        self.params, self.batch = params, batch
        self.grads = jax.tree.map(jax.numpy.zeros_like, params)

    def __call__(self) -> None:
        _, self.grads = jax.block_until_ready(self.compiled(self.params, self.grads, self.batch))


class Update:
    """Clipping and AdamW, in place."""

    def __init__(self, program: Program, params):
        def run(params, opt_state, grads):
            updates, opt_state = program.optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        self.compiled = jax.jit(run, donate_argnums=(0, 1))
        self.grads = jax.tree.map(lambda x: jax.numpy.full_like(x, 1e-6), params)
        self.state = (jax.tree.map(jax.numpy.copy, params), program.optimizer.init(params))

    def __call__(self) -> None:
        self.state = jax.block_until_ready(self.compiled(*self.state, self.grads))


def _objective(program: Program, params, batch: Batch):
    m, losses = program.run.model, program.losses
    states = tuple(loss.init(m) for loss in losses)
    sides = objective.sides_of(m, losses, states)
    stats = objective.stats_of(params, m, losses, sides, batch, program.root_key)
    return objective.total_of(losses, states, stats)[0]
