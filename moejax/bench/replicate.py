"""Replicas of a sharded function in one program: two seeds, each over four devices of expert parallelism.

`moejax.bench.replicas` is for models that fit one device; this is for those that have a mesh of their own.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from moejax import sharding
from moejax.config import MeshConfig, require

AXIS = "replica"  # of the mesh, around those of `sharding.AXES`


def make_mesh(replicas: int, cfg: MeshConfig) -> jax.sharding.Mesh:
    """The mesh of so many replicas, each over the devices of `cfg`, which lie beside one another.

    Raises:
      UsageError: there are fewer devices.
    """
    sizes = tuple(getattr(cfg, axis) for axis in sharding.AXES)
    each, there = int(np.prod(sizes)), jax.devices()
    require(
        replicas * each <= len(there),
        f"{replicas} replicas of {each} devices need {replicas * each}, {len(there)} are there; take fewer, "
        f"or on CPU set XLA_FLAGS=--xla_force_host_platform_device_count={replicas * each}",
    )
    devices = np.array(there[: replicas * each]).reshape(replicas, *sizes)
    axes = (AXIS, *sharding.AXES)
    return jax.sharding.Mesh(devices, axes, axis_types=(AxisType.Explicit,) * len(axes))


def replicate(fn: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """`fn` of one replica as a function of all: arguments and results have a leading replica dim.

    Inside, the mesh is that of one replica, so models lie and exchange rows as they do alone.

    Args:
      fn: pytrees of arrays to a pytree of arrays; it may be a whole train step.
      mesh: of `make_mesh`, and current (`jax.set_mesh`) where the result is called under `jax.jit`.
    """

    def one(*args):
        results = fn(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], results)

    # Unchecked, because jax 0.10 gives what a `shard_map` inside `fn` keeps for its gradient the outer axis
    # twice. Nothing is lost: what `fn` gets is a replica's own, and no collective names the axis.
    return jax.shard_map(
        one, mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS), axis_names={AXIS}, check_vma=False
    )


def place(per_replica: list, mesh: jax.sharding.Mesh, names: tuple[str, ...] = ()):
    """Host pytrees, one per replica, stacked on their devices.

    Args:
      per_replica: trees of arrays of equal shapes.
      mesh: of `make_mesh`.
      names: dims of every array, by the names of `sharding.RULES`; those that are left out are whole.
    """
    where = jax.sharding.NamedSharding(mesh, P(AXIS, *sharding.stored(names, mesh)))
    return jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves), where), *per_replica)
