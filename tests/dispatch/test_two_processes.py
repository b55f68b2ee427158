"""Rows that travel between two real processes over gloo: the same numbers as on one device."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np

from tests.contracts import test_dispatch as contract
from tests.contracts import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(process: int, address: str, result: pathlib.Path) -> subprocess.Popen:
    flags = "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "tests.dispatch.two_process_dispatch",
        address,
        "2",
        str(process),
        result,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_every_dispatcher_over_two_processes(tmp_path):
    """An expert axis of four devices, two in each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [start(i, address, tmp_path / "result.npz") for i in range(2)]
    try:
        with jax.enable_x64(True):
            p, x_BTD, expert_BTK, gate_BTK = contract.drawn(contract.routing("some_empty"))
            wanted = contract.dense_gradients(p, x_BTD, expert_BTK, gate_BTK), expert_BTK < contract.E
        said = [process.communicate(timeout=270)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    with np.load(tmp_path / "result.npz") as result:
        for name in contract.SCHEMES:
            leaves = [result[f"{name} {i}"] for i in range(len(jax.tree.leaves(wanted)))]
            tiny.close(leaves, jax.tree.leaves(wanted), 1e-10)
