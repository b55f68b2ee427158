"""Rows that travel between two real processes over gloo: the same numbers as on one device."""

import jax
import numpy as np

from tests import pair
from tests.contracts import test_dispatch as contract
from tests.contracts import tiny


def dense():
    with jax.enable_x64(True):
        p, x_BTD, expert_BTK, gate_BTK = contract.drawn(contract.routing("some_empty"))
        return contract.dense_gradients(p, x_BTD, expert_BTK, gate_BTK), expert_BTK < contract.E


def test_every_dispatcher_over_two_processes(tmp_path):
    """An expert axis of four devices, two in each process."""
    result = tmp_path / "result.npz"
    wanted = jax.tree.leaves(pair.run("tests.dispatch.two_process_dispatch", result, dense, timeout=270))
    with np.load(result) as found:
        for name in contract.SCHEMES:
            tiny.close([found[f"{name} {i}"] for i in range(len(wanted))], wanted, 1e-10)
