"""One step, computed twice."""

import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from moejax.training import faults, sdc

STATE = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}


def step(state, batch):
    return {"a": state["a"] + batch, "b": state["b"] * 2}, {"loss": jnp.sum(state["a"])}


def test_equal_bits_are_no_problem():
    (state, metrics), problem = sdc.checked_step(step, STATE, 1.0, 4)
    assert problem is None
    np.testing.assert_array_equal(state["a"], [1.0, 2.0, 3.0])
    assert metrics["loss"] == 3.0


def test_a_flipped_bit_is_outvoted(monkeypatch):
    monkeypatch.setattr(faults, "plan", lambda: faults.parse("step=4:flip"))
    (state, _), problem = sdc.checked_step(step, STATE, 1.0, 4)
    assert problem == (
        "step 4 gave different bits for b when it was computed again (transient: two of three runs agree)"
    )
    np.testing.assert_array_equal(state["b"], 2 * np.ones((2, 2)))


def test_a_lasting_fault_gives_three_answers():
    count = iter(range(3))
    _, problem = sdc.checked_step(
        lambda state, _: ({"a": state["a"] + next(count)}, {}), {"a": jnp.ones(2)}, None, 7
    )
    assert problem.endswith("for a when it was computed again (lasting: no two of three runs agree)")


def test_a_difference_in_another_process_repeats_the_step_here_too(monkeypatch):
    def gather(differs):
        return np.stack([differs, [False, True]])  # what the other process saw

    monkeypatch.setattr(sdc.jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    calls = []
    _, problem = sdc.checked_step(lambda *args: calls.append(1) or step(*args), STATE, 1.0, 4)
    assert len(calls) == 3
    assert "different bits for b" in problem
