"""Whole processes: two that save together, and one that is killed over and over."""

import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import CheckpointConfig
from moejax.training.checkpoint import Checkpointer
from moejax.training.step_store import verify_run

# Two processes, one device each: three saves, of which process 1 fails the second.
PAIR = """
import os, sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
run, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)
from moejax.config import CheckpointConfig
from moejax.training import faults
from moejax.training.checkpoint import Checkpointer

if index == 1:
    faults.plan = lambda: faults.parse("save=2:enospc")
mesh = jax.make_mesh((2,), ("data",))
rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

def state(step):
    w = np.arange(8.0, dtype=np.float32).reshape(4, 2) + step
    return {
        "w": jax.make_array_from_callback(w.shape, rows, lambda part: w[part]),
        "step": jax.make_array_from_callback((), everywhere, lambda _: np.int32(step)),
        "host": np.array([step]),
    }

checkpoints = Checkpointer(run, CheckpointConfig())
for step in (1, 2, 3):
    checkpoints.save(step, state(step), {"step": step})
    checkpoints.wait()
print("saved", checkpoints.steps(), checkpoints.num_failures, flush=True)
abstract = {
    name: x if name == "host" else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    for name, x in state(0).items()
}
restored = checkpoints.restore(abstract)
(shard,) = restored.state["w"].addressable_shards
print("restored", restored.step, shard.data.tolist(), int(restored.state["step"]), flush=True)

if index == 0:  # a file of process 1 is damaged: both fall back
    path = next((checkpoints._store.path(3) / "arrays").glob("ocdbt.process_1/d/*"))
    path.write_bytes(b"")
checkpoints._peers.barrier("damaged")
print("fallback", checkpoints.restore(abstract).step, flush=True)
checkpoints.save(3, state(3), {})
checkpoints.wait()
print("end", checkpoints.steps(), sorted(os.listdir(run + "/checkpoints")), flush=True)
"""


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run_pair(run):
    port = str(free_port())
    env = {
        **os.environ,
        "PYTHONPATH": os.getcwd(),
        "XLA_FLAGS": "",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, str(run), port, str(index)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (_, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
    return outputs


def test_two_processes_save_fail_and_fall_back_together(tmp_path):
    (out_0, err_0), (out_1, err_1) = run_pair(tmp_path)
    for out, rows in ((out_0, [[3.0, 4.0], [5.0, 6.0]]), (out_1, [[7.0, 8.0], [9.0, 10.0]])):
        assert [line for line in out.splitlines() if not line.startswith("[Gloo]")] == [
            "saved [1, 3] 1",
            f"restored 3 {rows} 3",
            "fallback 1",
            "end [1, 3] ['1', '3', '3.corrupt-1']",
        ]
    assert "step 2 was not saved: the disk" in err_1
    assert "step 2 was not saved: process 1 did not write its part" in err_0
    assert [report.name for report in verify_run(tmp_path) if not report.problems] == ["1", "3"]
    # and one process reads what two wrote
    shape = {"w": jax.ShapeDtypeStruct((4, 2), jnp.float32), "step": jax.ShapeDtypeStruct((), jnp.int32)}
    restored = Checkpointer(tmp_path, CheckpointConfig()).restore({**shape, "host": np.array([0])})
    np.testing.assert_array_equal(restored.state["w"], np.arange(8.0).reshape(4, 2) + 3)
    assert restored.state["host"].tolist() == [3]


# Saves without end; every leaf of step n is n.
FOREVER = """
import itertools, sys
import jax, jax.numpy as jnp
from moejax.config import CheckpointConfig
from moejax.training.checkpoint import Checkpointer
checkpoints = Checkpointer(sys.argv[1], CheckpointConfig(keep_last=2))
restored = checkpoints.restore({f"w{n}": jax.ShapeDtypeStruct((50_000,), jnp.int32) for n in range(4)})
if restored:
    assert all((leaf == restored.step).all() for leaf in restored.state.values())
    assert restored.meta == {"step": restored.step}
print("ready", restored and restored.step, flush=True)
for step in itertools.count(restored.step + 1 if restored else 1):
    checkpoints.save(step, {f"w{n}": jnp.full((50_000,), step) for n in range(4)}, {"step": step})
    print(step, flush=True)  # the one before it is committed
"""


def kill_at_random(run, kills):
    """Start, let it save for a random while, kill -9, look; returns the newest step after each kill."""
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    newest = []
    for _ in range(kills):
        with subprocess.Popen(
            [sys.executable, "-c", FOREVER, str(run)], env=env, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout.readline().startswith(b"ready")
            names = os.listdir(run / "checkpoints") if (run / "checkpoints").exists() else []
            assert all(name.isdecimal() for name in names if not name.startswith(".tmp"))
            for _ in range(random.randint(2, 5)):
                process.stdout.readline()
            time.sleep(random.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
        reports = verify_run(run)
        assert not [problem for report in reports for problem in report.problems]
        newest.append(reports[-1].step if reports else 0)
    return newest


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.nightly)])
def test_a_process_that_is_killed_at_any_time_leaves_whole_steps(tmp_path, kills):
    newest = kill_at_random(tmp_path, kills)
    assert newest == sorted(set(newest)) and newest[0] > 0  # every start goes on from the one before
    Checkpointer(tmp_path, CheckpointConfig())
    assert all(name.isdecimal() for name in os.listdir(tmp_path / "checkpoints"))
