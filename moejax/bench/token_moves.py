"""Tokens that really travel between devices, from expert to expert: what a placement saves, counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from moejax.config import require

AXIS = "expert"


def rows_sent(device_LN: np.ndarray, num_devices: int) -> np.ndarray:
    """Rows that leave their device before each layer, [L], when tokens stay where their last expert was.

    Every token carries its id and looks up where its next expert lives, as a replicated router would; one
    all-to-all per layer moves it there. Tokens start spread evenly, which the first entry pays for.

    Args:
      device_LN: where the expert of each token at each layer lives.
      num_devices: P; as many must be there, and divide the tokens.

    Raises:
      UsageError: there are fewer devices, or they do not divide the tokens.
    """
    found, (_, N) = jax.local_device_count(), device_LN.shape
    flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={num_devices}"
    require(num_devices <= found, f"{num_devices} devices are wanted, {found} are there; on CPU set {flag}")
    require(N % num_devices == 0, f"{N} tokens do not spread evenly over {num_devices} devices")
    mesh = jax.make_mesh((num_devices,), (AXIS,), devices=jax.devices()[:num_devices])
    travel = functools.partial(_travel, num_devices=num_devices)
    with jax.set_mesh(mesh):
        moved = jax.jit(
            jax.shard_map(travel, in_specs=(P(), P(AXIS)), out_specs=(P(), P(AXIS)), check_vma=True)
        )
        own_N = jax.device_put(np.arange(N, dtype=np.int32), jax.NamedSharding(mesh, P(AXIS)))
        sent_L, at_PN = moved(jnp.asarray(device_LN, jnp.int32), own_N)
    _check_arrived(np.asarray(at_PN).reshape(num_devices, -1), device_LN[-1])
    return np.asarray(sent_L)


def _travel(device_LN, own_n, *, num_devices: int):
    """(rows sent per layer over all devices, ids that ended here); id N is an empty place."""
    _, N = device_LN.shape
    here = jax.lax.axis_index(AXIS)
    # All tokens may meet on one device.
    empty = jax.lax.pcast(jnp.full(N - len(own_n), N, jnp.int32), AXIS, to="varying")
    own_N = jnp.concatenate([own_n, empty])

    def layer(own_N, device_N):
        to_N = jnp.append(device_N, num_devices)[own_N]
        want_PN = to_N[None] == jnp.arange(num_devices)[:, None]
        cell_PN = jnp.where(want_PN, own_N[None], N)  # row p: what goes to device p
        got_PN = jax.lax.all_to_all(cell_PN, AXIS, split_axis=0, concat_axis=0)
        sent = jnp.sum((own_N < N) & (to_N != here))
        return jnp.sort(got_PN.reshape(-1))[:N], jax.lax.psum(sent, AXIS)

    own_N, sent_L = jax.lax.scan(layer, own_N, device_LN)
    return sent_L, own_N


def _check_arrived(at_PN: np.ndarray, device_N: np.ndarray) -> None:
    """Every token is where its last expert lives, and nowhere else."""
    for p, own_N in enumerate(at_PN):
        arrived = own_N[own_N < len(device_N)]
        assert arrived.tolist() == np.flatnonzero(device_N == p).tolist(), f"tokens are lost on device {p}"
