"""Every dispatcher over the devices of all processes; the first one writes what came out.

python -m tests.dispatch.two_process_dispatch ADDRESS NUM_PROCESSES PROCESS RESULT.npz
"""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from tests.contracts import test_dispatch as contract
from tests.contracts import tiny


def run(rows: slice, **axes):
    """{dispatcher: leaves of ((output, gradients), kept slots)}; `rows` are the share of this process."""
    results = {}
    with jax.enable_x64(True), tiny.on_mesh(**axes) as mesh:
        p, *batch = contract.drawn(contract.routing("some_empty"))
        for name in contract.SCHEMES:
            own = contract.placed(name, p, *(x[rows] for x in batch), mesh=mesh)
            results[name] = jax.tree.leaves(contract.program(name)(*own))
    return results


def main(address: str, num_processes: str, process: str, result: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(num_processes), int(process))
    share = contract.B // int(num_processes)
    own = slice(int(process) * share, (int(process) + 1) * share)
    results = run(own, expert=int(num_processes) * jax.local_device_count())
    with jax.enable_x64(True):
        whole = {
            f"{name} {i}": multihost_utils.process_allgather(leaf, tiled=True)
            for name, leaves in results.items()
            for i, leaf in enumerate(leaves)
        }
    if process == "0":
        np.savez(result, **whole)


if __name__ == "__main__":
    main(*sys.argv[1:])
