"""Parallelism that follows the load: how many slots, who gets which rows, and who gathers which weights.

Tutel: Adaptive Mixture-of-Experts at Scale (Hwang et al. 2022, arXiv 2206.03382). Experts lie cut along their
width over the fsdp axis, so that its devices hold one expert together, whatever the mode:

    r = 0     every device gathers all experts and keeps its tokens
    r >= 1    the devices of an expert form r groups of neighbours. A row travels to one device of every
              group; a group gathers its 1/r of the expert; the r partial results are summed at home

A mode is only a choice of groups: neither tokens nor parameters are ever laid out anew. r = 1 is data and
expert parallelism, r = mesh.fsdp is expert and model parallelism. Every mode is a branch of one program; the
branch is taken by the slots that the fullest expert of all devices needs. `analysis.parallel_plan` proposes
the modes for a mesh.

Differs from the paper: buckets are capacity factors and not multiples of 128 slots, so that a recipe holds at
any batch size; experts compute the rows that are there, not the empty slots. With several modes the backward
pass exchanges rows and gathers weights once more, because a branch keeps nothing but its operands.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from moejax import sharding
from moejax.config import require
from moejax.dispatch.exchange import all_to_all, capacity, check_cells, compute_cells, in_cells, through_cells
from moejax.dispatch.shards import AXIS, num_experts, on_every_device
from moejax.dispatch.sort import run_sorted
from moejax.seams import Dispatch, Tree

SLICES = "fsdp"  # of the mesh: over it the width of an expert is cut
ROWS = ("data", SLICES, AXIS)  # over which tokens are split


@dataclasses.dataclass(frozen=True)
class Mode:
    """One way to run the layer, for loads up to a capacity."""

    capacity_factor: float | None = None  # f, of the mean load; None = as many slots as rows can come
    r: int = 1  # devices to which a row goes; 0 = rows stay, weights come
    chunks: int = 1  # parts of the capacity that are exchanged and computed one after the other
    node_size: int = 1  # devices in a row that share a fast link; 1 = one all-to-all over all

    def __post_init__(self):
        check_cells("dispatch.modes[]", self)
        require(self.r >= 0, f"dispatch.modes[].r={self.r} must be 0 or a divisor of mesh.fsdp")

    def aligned(self, slots: int, slices: int) -> int:
        """`slots` of an expert, rounded up so that they split over chunks and the devices of a group."""
        parts = self.chunks * slices // self.r
        return -(-slots // parts) * parts


@dataclasses.dataclass(frozen=True)
class Adaptive(Dispatch):
    modes: tuple[Mode, ...] = (Mode(1.25), Mode(2.0), Mode())  # by capacity; rows drop beyond the last

    sliced = True

    def __post_init__(self):
        factors = [mode.capacity_factor for mode in self.modes]
        rising = [float("inf") if factor is None else factor for factor in factors]
        require(len(factors) > 0, "dispatch.modes is empty; use at least Mode()")
        require(
            all(a < b for a, b in itertools.pairwise(rising)),
            f"dispatch.modes have the capacity factors {factors}; sort them and drop equal ones, None last",
        )

    @property
    def causal(self) -> bool:
        return self.modes[-1].capacity_factor is None

    def causal_form(self):
        *lower, last = self.modes
        return Adaptive((*lower, dataclasses.replace(last, capacity_factor=None)))

    def check_mesh(self, mesh) -> None:
        """Refuse modes that do not fit the axes."""
        devices = mesh.fsdp * mesh.expert
        for i, mode in enumerate(self.modes):
            require(
                mode.r == 0 or mesh.fsdp % mode.r == 0,
                f"dispatch.modes[{i}].r={mode.r} does not divide mesh.fsdp={mesh.fsdp}, the devices that "
                f"hold one expert together; choose 0 or a divisor of {mesh.fsdp}",
            )
            require(
                devices % mode.node_size == 0,
                f"mesh.fsdp*mesh.expert={devices} is not divisible by dispatch.modes[{i}].node_size="
                f"{mode.node_size}; choose a node_size that divides it, or 1",
            )

    def collective_bytes(self, load, passes: int = 1) -> dict[str, int]:
        """Bytes that one device hands to collectives (of a gather: gets) in the last mode.

        Args:
          load: a `dispatch.load.Load`.
          passes: 2 = with the backward pass, which repeats the forward pass where there are several modes.
        """
        mode, S, devices = self.modes[-1], load.slices, load.devices * load.slices
        forward, backward = passes if len(self.modes) > 1 else 1, passes - 1
        groups = (S, devices if load.devices > 1 else 1) if mode.r == 0 else (S // mode.r,)
        weights = sum(load.parameters * load.itemsize // devices * n for n in groups if n > 1)
        rows = sizes = 0
        if mode.r > 0:
            slots = capacity(mode.capacity_factor, load.tokens, load.slots, load.experts)
            levels = 1 if mode.node_size in (1, devices) else 2
            rows = levels * 2 * mode.r * load.experts * mode.aligned(slots, S) * load.row_bytes
            sizes = levels * mode.chunks * S * load.experts * 4
        return {
            "all-gather": forward * weights,
            "reduce-scatter": backward * weights,
            "all-to-all": (forward + backward) * rows + forward * sizes,
            "all-reduce": 4 if len(self.modes) > 1 else 0,
        }

    def __call__(self, expert_fn, p, x_BTD, expert_BTK, gate_BTK):
        cut = None
        if sharding.out("B") is not None:
            p = jax.tree.map(slice_width, p)
            cut = jax.tree.map(width_dim, p)
        run = functools.partial(self._run, _Experts(expert_fn, num_experts(p), cut))
        return on_every_device(run, (p, x_BTD, expert_BTK, gate_BTK))

    def _run(self, experts, p, x_ND, expert_NK, gate_NK):
        N, K = expert_NK.shape
        sizes = [capacity(mode.capacity_factor, N, K, experts.total) for mode in self.modes]
        _, home_NK, size_E = in_cells(expert_NK, experts.total, sizes[-1])
        kept_NK = home_NK < experts.total * sizes[-1]
        operands = p, x_ND, gate_NK, jnp.where(kept_NK, expert_NK, experts.total)
        if experts.cut is None:
            return experts.here(*operands), kept_NK
        rows = zip(self.modes, sizes, strict=True)
        branches = tuple(functools.partial(_in_mode, *row, experts) for row in rows)
        if len(branches) == 1:
            return branches[0](*operands), kept_NK
        # Devices that took different branches would wait for one another forever: all take the same.
        needed = lax.pmax(jnp.max(size_E), ROWS)
        index = jnp.sum(needed > jnp.array(sizes[:-1]), dtype=jnp.int32)
        return _switch(branches, index, *operands), kept_NK


@dataclasses.dataclass(frozen=True)
class _Experts:
    compute: Callable  # an ExpertFn
    total: int  # E
    cut: Tree  # per parameter, the dim that lies over SLICES; None without a mesh

    def here(self, p, x_ND, gate_NK, expert_NK):
        """Without any exchange, as this device holds all experts."""
        return run_sorted(self.compute, p, x_ND, expert_NK, gate_NK, self.total)

    def gathered(self, p, groups=None):
        """The experts with the slices of a group put together."""
        gather = functools.partial(lax.all_gather, axis_name=SLICES, tiled=True, axis_index_groups=groups)
        return jax.tree.map(lambda w, dim: gather(w, axis=dim), p, self.cut)


def slice_width(w):
    """A stored expert parameter in the layout of every mode: cut over SLICES along the dim of "tensor"."""

    def axes(name):
        return ("tensor", SLICES) if "tensor" in _names(name) else None if name == SLICES else name

    return jax.reshard(w, P(*map(axes, jax.typeof(w).sharding.spec)))


def width_dim(w) -> int:
    """The dim of a parameter that lies over SLICES."""
    return next(i for i, name in enumerate(jax.typeof(w).sharding.spec) if SLICES in _names(name))


def _names(entry) -> tuple:
    return entry if isinstance(entry, tuple) else (entry,)


def _in_mode(mode, size, experts, *operands):
    """One branch: y_ND of at most `size` rows per expert."""
    p, x_ND, gate_NK, expert_NK = operands
    if mode.r == 0:
        p = jax.tree.map(lambda w: lax.all_gather(w, AXIS, axis=0, tiled=True), experts.gathered(p))
        return experts.here(p, x_ND, gate_NK, expert_NK)
    slices = lax.axis_size(SLICES)
    span = slices // mode.r
    if span > 1:
        p = experts.gathered(p, [list(range(i, i + span)) for i in range(0, slices, span)])
    E, C = experts.total, mode.aligned(size, slices)
    exchange = functools.partial(_there_and_back, mode, functools.partial(compute_cells, experts.compute, p))
    return through_cells(exchange, x_ND, in_cells(expert_NK, E, C), gate_NK)


def _there_and_back(mode, expert_fn, cells_ECD, size_E):
    """The experts on every cell: out to r devices per row, back, and the sum of the r partial results."""
    span = lax.axis_size(SLICES) // mode.r
    parts = mode.chunks * span
    E, C, D = cells_ECD.shape
    # Rows take turns, so that no chunk and no neighbour of a group gets the empty end of all cells.
    cells_cgECD = cells_ECD.reshape(E, C // parts, mode.chunks, span, D).transpose(2, 3, 0, 1, 4)
    turn_cg = jnp.arange(parts).reshape(mode.chunks, span)
    size_cgE = (size_E[None, None] + parts - 1 - turn_cg[..., None]) // parts
    results = []
    for cells_gECD, size_gE in zip(cells_cgECD, size_cgE, strict=True):
        to_groups = lambda x: jnp.broadcast_to(x, (mode.r, *x.shape)).reshape(-1, *x.shape[2:])
        arrived_ICD, here_I = (_swap(to_groups(x), mode) for x in (cells_gECD, size_gE))
        back_ICD = _swap(expert_fn(arrived_ICD, here_I), mode)
        results.append(jnp.sum(back_ICD.reshape(mode.r, span, E, -1, D), axis=0))
    return jnp.stack(results).transpose(2, 3, 0, 1, 4).reshape(cells_ECD.shape)


def _swap(cells_I, mode):
    """All-to-all over the devices that exchange rows, in the order in which they stand in their nodes."""
    return all_to_all(cells_I, (SLICES, AXIS), mode.node_size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _switch(branches, index, p, x_ND, gate_NK, expert_NK):
    """The branch that `index` says; its backward pass computes it anew, so that only operands are kept."""
    return lax.switch(index, branches, p, x_ND, gate_NK, expert_NK)


def _switch_forward(branches, *operands):
    return _switch(branches, *operands), operands


def _switch_backward(branches, saved, d_y_ND):
    index, *operands, expert_NK = saved

    def pull(branch):
        def back(d_y_ND, expert_NK, *operands):
            return jax.vjp(lambda *floats: branch(*floats, expert_NK), *operands)[1](d_y_ND)

        return back

    grads = lax.switch(index, [pull(branch) for branch in branches], d_y_ND, expert_NK, *operands)
    return None, *grads, None


_switch.defvjp(_switch_forward, _switch_backward)
