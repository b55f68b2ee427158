"""Rows travel in cells of a fixed size, one per device and expert: fixed and two-level all-to-all.

Tutel: Adaptive Mixture-of-Experts at Scale (Hwang et al. 2022, arXiv 2206.03382). Each device has C slots
per expert and sends all of them, whatever is in them, so every message has the same length:

    C = K int(f ceil(N / E))        of a device's N tokens, with the capacity factor f

Slots are given in choice-major order: all first choices in order of the tokens, then all second choices.
Rows that find none are dropped: they add nothing, and `kept_BTK` says so.

2DH (two-dimensional hierarchical all-to-all): with `node_size` devices that share a fast link, cells pass
first inside the nodes, to the device whose place in its node is the receiver's, and then between nodes: few
long messages on the slow link in the place of many short ones. The result is that of one all-to-all.

Differs from the paper: experts compute the rows that are there, not the empty slots; `chunks` (the paper's
pipelining degree) may be any number.
"""

import dataclasses
import functools

import jax.numpy as jnp

from moejax.config import require
from moejax.dispatch.exchange import all_to_all, capacity, check_cells, compute_cells, in_cells, through_cells
from moejax.dispatch.shards import AXIS, num_experts, on_every_device
from moejax.dispatch.sort import run_sorted
from moejax.seams import Dispatch


@dataclasses.dataclass(frozen=True)
class FixedCell(Dispatch):
    capacity_factor: float | None = None  # f; None = as many slots as rows can come, so that none is dropped
    chunks: int = 1  # parts of the capacity that are exchanged and computed one after the other
    node_size: int = 1  # devices in a row that share a fast link; 1 = one all-to-all over all

    def __post_init__(self):
        check_cells("dispatch", self)

    @property
    def causal(self) -> bool:
        return self.capacity_factor is None

    def causal_form(self):
        return dataclasses.replace(self, capacity_factor=None)

    def check_mesh(self, mesh) -> None:
        """Refuse an expert axis that is not made of whole nodes."""
        require(
            mesh.expert % self.node_size == 0,
            f"mesh.expert={mesh.expert} is not divisible by dispatch.node_size={self.node_size}; "
            "choose a node_size that divides the expert axis, or 1",
        )

    def collective_bytes(self, load, passes: int = 1) -> dict[str, int]:
        """Bytes that one device hands to collectives in a forward pass; 2 passes = and the backward pass."""
        levels = 1 if self.node_size in (1, load.devices) else 2
        cells = load.experts * self._slots(load.tokens, load.slots, load.experts) * load.row_bytes
        return {"all-to-all": levels * (passes * 2 * cells + self.chunks * 4 * load.experts)}

    def _slots(self, num_tokens: int, num_slots: int, num_experts: int) -> int:
        """C, in equal chunks."""
        wanted = capacity(self.capacity_factor, num_tokens, num_slots, num_experts)
        return -(-wanted // self.chunks) * self.chunks

    def __call__(self, expert_fn, p, x_BTD, expert_BTK, gate_BTK):
        run = functools.partial(self._run, expert_fn, num_experts(p))
        return on_every_device(run, (p, x_BTD, expert_BTK, gate_BTK))

    def _run(self, expert_fn, E, p, x_ND, expert_NK, gate_NK):
        C = self._slots(*expert_NK.shape, E)
        slots = in_cells(expert_NK, E, C)
        kept_NK = slots[1] < E * C
        if num_experts(p) == E:
            return run_sorted(expert_fn, p, x_ND, jnp.where(kept_NK, expert_NK, E), gate_NK, E), kept_NK
        experts = functools.partial(compute_cells, expert_fn, p)
        exchange = functools.partial(self._there_and_back, experts)
        return through_cells(exchange, x_ND, slots, gate_NK), kept_NK

    def _there_and_back(self, experts, cells_ECD, size_E):
        """`experts(cells, sizes)` on the devices that hold them, chunk by chunk."""
        swap = functools.partial(all_to_all, axes=AXIS, node_size=self.node_size)
        chunk = cells_ECD.shape[1] // self.chunks
        results = []
        for i, cells_EcD in enumerate(jnp.split(cells_ECD, self.chunks, axis=1)):
            here_E = jnp.clip(size_E - i * chunk, 0, chunk)
            results.append(swap(experts(swap(cells_EcD), swap(here_E))))
        return jnp.concatenate(results, axis=1)
