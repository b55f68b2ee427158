"""A real run of two processes over gloo equals one process on one device."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from tests.contracts import tiny
from tests.training import two_process_step

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(process: int, address: str, result: pathlib.Path) -> subprocess.Popen:
    flags = "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "tests.training.two_process_step",
        address,
        "2",
        str(process),
        str(result),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=env, **pipes)


def test_two_processes_equal_one(tmp_path):
    """Weights, the bias of the controller, loss and gradient norm after two steps of two micro-batches."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [start(i, address, tmp_path / "result.npz") for i in range(2)]
    try:
        want = two_process_step.flat(*two_process_step.run(slice(None)))
        said = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    with np.load(tmp_path / "result.npz") as result:
        tiny.close([result[name] for name in result.files], want, 1e-8)
