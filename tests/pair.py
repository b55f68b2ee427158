"""Runs a module in two real processes that meet over gloo, with two devices each."""

import os
import pathlib
import socket
import subprocess
import sys

from tests import quick_compile

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGS = f"--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false {quick_compile.FLAGS}"


def run(module: str, result: pathlib.Path, meanwhile, timeout: float):
    """What `meanwhile()` gives, computed beside `python -m module ADDRESS 2 PROCESS RESULT` twice.

    Raises:
      AssertionError: a process failed; with what both said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [_start(module, address, i, result) for i in range(2)]
    try:
        value = meanwhile()
        said = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return value


def _start(module: str, address: str, process: int, result: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, "-m", module, address, "2", str(process), str(result)]
    env = {**os.environ, "XLA_FLAGS": FLAGS, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=env, **pipes)
