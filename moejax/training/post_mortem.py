"""What a run leaves behind that ends because its numbers are not finite: where they are, by name."""

import json
import pathlib

import jax
import jax.numpy as jnp

from moejax import durable
from moejax.training.leaves import named_leaves
from moejax.training.state import TrainState

NAMES_SAID = 3  # leaves named in the message; the file has all


def finite_leaves(state: TrainState) -> dict[str, bool]:
    """By path, for parameters and optimiser: whether all numbers of a leaf are finite."""
    flags = _finite({"params": state.params, "opt_state": state.opt_state})
    return {name: bool(flag) for name, flag in named_leaves(flags).items()}


@jax.jit
def _finite(tree):
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree)


def write(run_dir: pathlib.Path, step: int, state: TrainState, bad_gradients, facts: dict) -> str:
    """Write `skipped-<step>.json`, on the first process; returns what it says in words.

    Args:
      bad_gradients: per parameter, whether the last skipped update had a gradient that was not finite; None
        if none was skipped.
      facts: what else belongs into the file.
    """
    finite = finite_leaves(state)
    names = [f"gradient/{name}" for name in named_leaves(state.params)]
    gradients = {} if bad_gradients is None else dict(zip(names, map(bool, ~bad_gradients), strict=True))
    path = run_dir / f"skipped-{step}.json"
    if jax.process_index() == 0:
        bundle = {"step": step, **facts, "finite": finite | gradients}
        durable.write_file(path, json.dumps(bundle, indent=1).encode())
    # When weights are not finite, hardly any gradient is: they are the cause, so they alone are said.
    bad = [name for name, flag in (gradients if all(finite.values()) else finite).items() if not flag]
    more = f" and {len(bad) - NAMES_SAID} more" if len(bad) > NAMES_SAID else ""
    said = (
        f"not finite: {', '.join(bad[:NAMES_SAID])}{more}" if bad else "all weights and gradients are finite"
    )
    return f"{said}; {path} has every leaf"
