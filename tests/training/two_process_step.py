"""Two train steps of the tiny model over the devices of all processes; the first one writes what came out.

python -m tests.training.two_process_step ADDRESS NUM_PROCESSES PROCESS RESULT.npz
"""

import functools
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from moejax import sharding
from moejax.config import BlockConfig, OptimConfig
from moejax.losses.balance import GlobalBalance
from moejax.losses.loss_free import LossFreeBias
from moejax.losses.next_token import NextToken
from moejax.model import forward as model
from moejax.training import optimizer, state, step
from tests.contracts import tiny

LOSSES = (NextToken(), GlobalBalance(0.1), LossFreeBias(rate=0.1))
ROWS = 8


def run(rows: slice, **mesh):
    """(state, metrics) after two steps; `rows` are this process's share of the batch."""
    m = tiny.float64(tiny.model(BlockConfig(tiny.ATTN, tiny.MOE), repeat=1))
    adamw = optimizer.make(OptimConfig(learning_rate=0.01, warmup_steps=1), 10, model.specs(m))
    quick_jit = functools.partial(jax.jit, compiler_options=tiny.QUICK_COMPILE)
    with jax.enable_x64(True), tiny.on_mesh(**mesh) as on:
        now = quick_jit(functools.partial(state.init, m=m, losses=LOSSES, optimizer=adamw))(jax.random.key(0))
        train = functools.partial(step.train_step, m=m, losses=LOSSES, optimizer=adamw, accumulate=2)
        train = quick_jit(train)
        for seed in range(2):
            batch = jax.tree.map(lambda x: x[rows], tiny.batch(seed, ROWS, 4))
            now, metrics = train(now, sharding.place_rows(batch, on), jax.random.key(1))
        return now, metrics


def flat(now, metrics) -> list:
    """What is compared."""
    return jax.tree.leaves((now.params, now.loss_state, metrics["train/loss"], metrics["train/grad_norm"]))


def main(address: str, num_processes: str, process: str, result: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(num_processes), int(process))
    share = ROWS // int(num_processes)
    own = slice(int(process) * share, (int(process) + 1) * share)
    out = flat(*run(own, data=int(num_processes), expert=jax.local_device_count()))
    with jax.enable_x64(True):
        whole = [multihost_utils.process_allgather(x, tiled=True) for x in out]
    if process == "0":
        np.savez(result, *whole)


if __name__ == "__main__":
    main(*sys.argv[1:])
