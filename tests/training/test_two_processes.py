"""A real run of two processes over gloo equals one process on one device."""

import numpy as np

from tests import pair
from tests.contracts import tiny
from tests.training import two_process_step


def test_two_processes_equal_one(tmp_path):
    """Weights, the bias of the controller, loss and gradient norm after two steps of two micro-batches."""
    alone = lambda: two_process_step.flat(*two_process_step.run(slice(None)))
    want = pair.run("tests.training.two_process_step", tmp_path / "result.npz", alone, timeout=240)
    with np.load(tmp_path / "result.npz") as result:
        tiny.close([result[name] for name in result.files], want, 1e-8)
