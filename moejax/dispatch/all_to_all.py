"""Every row goes to the device of its expert and its result comes back: ragged all-to-all, dropless.

GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding (Lepikhin et al. 2020, arXiv
2006.16668) sends tokens to experts with an all-to-all; here messages are as long as they are:

    every device counts its rows per expert, and all devices gather the counts
    row r of a device, sorted by expert, goes to its place among the rows of all devices for that expert
    experts compute what arrived, in order; the same exchange the other way round brings the results home

The buffer that receives must be as large as the worst case, all rows to one device, because shapes are
static; what the exchange costs follows the rows that are really sent.

Differs from the paper: no capacity, so no drops; rows arrive sorted by expert, so there is no second sort.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
from jax import lax

from moejax.config import require
from moejax.dispatch.ragged import Slices, cells, empty_buffer, ragged_all_to_all
from moejax.dispatch.shards import AXIS, num_experts, on_every_device
from moejax.dispatch.sort import run_sorted
from moejax.seams import Dispatch


@dataclasses.dataclass(frozen=True)
class RaggedAllToAll(Dispatch):
    chunks: int = 1  # shares of the tokens that are exchanged and computed one after the other

    def __post_init__(self):
        require(self.chunks >= 1, f"dispatch.chunks={self.chunks} must be at least 1")

    def __call__(self, expert_fn, p, x_BTD, expert_BTK, gate_BTK):
        run = functools.partial(_run, expert_fn, num_experts(p))
        return on_every_device(run, (p, x_BTD, expert_BTK, gate_BTK), self.chunks)

    def collective_bytes(self, load, passes: int = 1, platform: str = "cpu") -> dict[str, int]:
        """Bytes that one device hands to collectives (of a gather: gets), no slot empty and all loads equal.

        Args:
          load: a `dispatch.load.Load`.
          passes: 1 = a forward pass, 2 = and its backward pass; both go there and back.
          platform: "cpu" has no ragged exchange, see `dispatch.ragged`.
        """
        shares = load.shares(self.chunks)
        counts = {"all-gather": 4 * len(shares) * load.devices * load.experts}
        if platform != "cpu":
            return counts | {"ragged-all-to-all": passes * 2 * load.rows * load.row_bytes}
        in_cells = sum(load.devices * math.prod(cells(share.rows, load.devices)) for share in shares)
        longest = 2 * 4 * len(shares)  # message, there and back; the backward pass has it already
        return counts | {"all-to-all": passes * 2 * in_cells * load.row_bytes, "all-reduce": longest}


def _run(expert_fn, E, p, x_ND, expert_NK, gate_NK):
    if num_experts(p) < E:
        # A token goes to an expert once, so at most to all the experts of a device.
        most = len(x_ND) * min(expert_NK.shape[1], num_experts(p)) * (E // num_experts(p))
        expert_fn = functools.partial(_there_and_back, expert_fn, most)
    return run_sorted(expert_fn, p, x_ND, expert_NK, gate_NK, E), expert_NK < E


def _there_and_back(expert_fn, most: int, p_e, rows_RD, size_E):
    """`expert_fn` on the devices that hold the experts.

    Args:
      most: rows that can arrive on one device.
    """
    slices, arrived_e = plan(size_E, num_experts(p_e))
    rows_MD = expert_fn(p_e, _send(rows_RD, most, slices), arrived_e)
    return _send(rows_MD, len(rows_RD), slices.reversed())


def _send(rows_RD, num_rows: int, slices):
    return ragged_all_to_all(rows_RD, empty_buffer(num_rows, rows_RD, slices), slices, AXIS)


def plan(size_E, num_local: int):
    """Where the rows of every expert go: one slice per expert, and what arrives is sorted by expert.

    Returns:
      (slices, rows that arrive for each of the experts held here).
    """
    size_PE = lax.all_gather(size_E, AXIS)
    num_devices, own = len(size_PE), lax.axis_index(AXIS)
    first_PE = jnp.cumsum(size_PE, axis=1) - size_PE  # where senders have the rows of each expert
    # On device Q that holds experts e, rows lie in the order (expert, sender).
    size_QeP = size_PE.T.reshape(num_devices, num_local, num_devices)
    end_QeP = jnp.cumsum(size_QeP.reshape(num_devices, -1), axis=1).reshape(size_QeP.shape)
    place_QeP = end_QeP - size_QeP
    slices = Slices(
        input_offsets=first_PE[own],
        send_sizes=size_E,
        output_offsets=place_QeP[:, :, own].reshape(-1),
        recv_sizes=size_QeP[own].T.reshape(-1),
        source_offsets=first_PE.reshape(num_devices, num_devices, num_local)[:, own].reshape(-1),
        arrival_offsets=place_QeP[own].T.reshape(-1),
    )
    return slices, jnp.sum(size_QeP[own], axis=1)
