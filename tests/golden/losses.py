"""Twenty losses of the tiny recipe on made-up tokens, and the command that writes them down.

    python -m tests.golden.losses

In float64, so that another processor gives the same six digits: only the meaning of the code changes them.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np

from configs import base
from moejax.model import forward as model
from moejax.seams import Batch
from moejax.training import optimizer, state, step

PATH = pathlib.Path(__file__).with_name("tiny_cpu.json")
STEPS, ROWS, T = 20, 4, 32


def batch(number: int) -> Batch:
    """Arithmetic rows, two documents each, the last two positions absent."""
    row_BT, at_BT = np.indices((ROWS, T), np.int32)
    token_BT = (7 * row_BT + 3 * at_BT + at_BT * at_BT // 5 + 11 * number) % 64
    second_BT, valid_BT = at_BT >= 12 + row_BT, at_BT < T - 2
    return Batch(
        token_BT=token_BT,
        pos_BT=np.where(second_BT, at_BT - 12 - row_BT, at_BT),
        seg_BT=np.where(valid_BT, 1 + second_BT, 0).astype(np.int32),
        valid_BT=valid_BT,
        target_BT=np.roll(token_BT, -1, axis=1),
        weight_BT=(valid_BT & (at_BT != 11 + row_BT) & (at_BT != T - 3)).astype(np.float32),
    )


def losses() -> list[str]:
    """Six significant digits of the loss of every step."""
    recipe = base.tiny()
    m = dataclasses.replace(recipe.model, dtype="float64", param_dtype="float64")
    parts = {"m": m, "losses": recipe.train.losses}
    parts["optimizer"] = optimizer.make(recipe.train.optim, STEPS, model.specs(m))
    quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    train = quick_jit(functools.partial(step.train_step, **parts))
    said = []
    with jax.enable_x64(True):
        now = quick_jit(functools.partial(state.init, **parts))(jax.random.key(0))
        for number in range(STEPS):
            now, metrics = train(now, batch(number), jax.random.key(1))
            said.append(f"{float(metrics['train/loss']):.6g}")
    return said


if __name__ == "__main__":
    PATH.write_text(json.dumps(losses(), indent=1) + "\n")
