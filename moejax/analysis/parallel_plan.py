"""Which parallelism a MoE layer should run in at a given load: (r, degree, algorithm).

Tutel: Adaptive Mixture-of-Experts at Scale (Hwang et al. 2022, arXiv 2206.03382). W devices hold E experts,
every expert cut along its width into `slices`, one per device. With r = 0 every device gathers all experts
and keeps its tokens. With r >= 1 rows travel to r devices, each of which holds 1/r of the expert after
gathering it from its neighbours. More slots make rows dearer, so the best r falls as the load grows:

    elements per device and pass = 2 r rows D (W - 1)/W + P/W (slices/r - 1),   r = 0: P (1 - 1/W)

A backward pass moves as much as a forward pass. Times follow from linear costs of messages and arithmetic.

Differs from the paper: costs come from a model instead of trials on the cluster, so all choices are compared;
for powers of two there are fewer of them (the divisors of `slices`) than the paper's ternary search may try.
"""

import dataclasses
import itertools
import math

from moejax.analysis.overlap_plan import DEGREES, Chunk, Linear, layer_time
from moejax.config import require


@dataclasses.dataclass(frozen=True)
class MoeShape:
    """Sizes of a MoE layer on a mesh."""

    width: int  # D
    hidden: int  # F, of one expert
    experts: int  # E
    expert_devices: int  # groups of devices that hold different experts (mesh.expert)
    slices: int  # devices that hold one expert together (mesh.fsdp)
    tokens: int  # on one device
    k: int  # experts per token
    products: int = 2  # matrices of an expert: 2, or 3 with a gate

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(value >= 1, f"{field.name}={value} must be at least 1")
        for name, size, by in (
            ("experts", self.experts, "expert_devices"),
            ("hidden", self.hidden, "slices"),
        ):
            parts = getattr(self, by)
            require(
                size % parts == 0,
                f"{name}={size} is not divisible by {by}={parts}; choose one that divides it",
            )
        require(self.k <= self.experts, f"k={self.k} is more than experts={self.experts}; choose a smaller k")

    @property
    def devices(self) -> int:
        return self.expert_devices * self.slices

    @property
    def parameters(self) -> int:
        """P, of all experts."""
        return self.experts * self.products * self.width * self.hidden

    def rows(self, factor: float | None) -> float:
        """Slots of one device at this capacity factor, over all experts; None = as many as rows can come."""
        return self.experts * self.tokens if factor is None else self.k * factor * self.tokens


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Elements that one device receives in a forward pass; a backward pass moves as many."""

    exchange: float  # rows to the experts and back
    weights: float

    @property
    def training(self) -> float:
        """Of a forward and a backward pass."""
        return 2 * (self.exchange + self.weights)


def degrees_of_sharing(slices: int) -> tuple[int, ...]:
    """Every possible r: 0 and the divisors of `slices`."""
    return (0, *(r for r in range(1, slices + 1) if slices % r == 0))


def traffic(shape: MoeShape, rows: float, r: int) -> Traffic:
    """What one device receives.

    Args:
      shape: of the layer.
      rows: slots that one device fills, empty ones included: E times the capacity.
      r: 0 or a divisor of `shape.slices`.
    """
    known = degrees_of_sharing(shape.slices)
    require(
        r in known, f"r={r} does not divide slices={shape.slices}; choose one of {', '.join(map(str, known))}"
    )
    W, held = shape.devices, shape.parameters / shape.devices
    if r == 0:
        return Traffic(0.0, held * (W - 1))
    return Traffic(2 * r * rows * shape.width * (W - 1) / W, held * (shape.slices / r - 1))


def least_traffic(shape: MoeShape, factor: float) -> int:
    """The r that moves the fewest elements, the smallest of equals."""
    return min(degrees_of_sharing(shape.slices), key=lambda r: traffic(shape, shape.rows(factor), r).training)


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of a cluster; see `overlap_plan.fit_linear`."""

    between: Linear  # ms of one message to another node, by elements
    inside: Linear  # ms of one message within a node
    gather: Linear  # ms of gathering weights, by elements received
    compute: Linear  # ms of the experts of one chunk, by multiply-adds
    node: int  # devices in a node


@dataclasses.dataclass(frozen=True)
class Messages:
    """What one device sends to other nodes in an all-to-all."""

    count: int
    size: float  # elements of each


def messages(devices: int, node: int, size: float, node_size: int) -> Messages:
    """Messages to other nodes: one per foreign device, or, in two levels, one per foreign node.

    Args:
      devices: that exchange.
      node: devices in a node.
      size: elements that one device sends in all.
      node_size: 1 = one all-to-all over all; `node` = two levels.
    """
    if node_size == 1 or node >= devices:
        return Messages(max(devices - node, 0), size / devices)
    return Messages(devices // node - 1, size * node / devices)


def exchange_time(costs: Costs, devices: int, size: float, node_size: int) -> float:
    """ms of one all-to-all in which every device sends `size` elements, its own share included."""
    far, near = messages(devices, costs.node, size, node_size), min(costs.node, devices)
    piece = size / near if node_size > 1 else size / devices
    return far.count * costs.between(far.size) + (near - 1) * costs.inside(piece)


@dataclasses.dataclass(frozen=True)
class Choice:
    """How one capacity is run; the fields of `dispatch.adaptive.Mode`."""

    capacity_factor: float | None
    r: int
    chunks: int
    node_size: int


def step_time(shape: MoeShape, costs: Costs, choice: Choice) -> float:
    """ms of a forward and a backward pass of the layer in this mode."""
    rows, per_row = shape.rows(choice.capacity_factor), shape.products * shape.width * shape.hidden
    weights = traffic(shape, rows, choice.r).weights
    gathered = 2 * costs.gather(weights) if weights else 0.0
    if choice.r == 0:
        return gathered + 3 * costs.compute(shape.k * shape.tokens * per_row)
    size = choice.r * rows * shape.width / choice.chunks
    a2a = exchange_time(costs, shape.devices, size, choice.node_size)
    experts = costs.compute(rows * per_row / choice.chunks)  # of the device that holds the fullest expert
    passes = (Chunk(a2a, 0.0, experts, 0.0), Chunk(a2a, 0.0, 2 * experts, 0.0))
    return gathered + sum(layer_time(chunk, choice.chunks) for chunk in passes)


def plan(shape: MoeShape, costs: Costs, factors, degrees=DEGREES) -> tuple[Choice, ...]:
    """The fastest choice for every capacity factor; the simplest of equals."""
    options = list(itertools.product(degrees_of_sharing(shape.slices), degrees, sorted({1, costs.node})))

    def fastest(factor):
        choices = (Choice(factor, *option) for option in options)
        return min(choices, key=lambda choice: step_time(shape, costs, choice))

    return tuple(map(fastest, factors))


def num_trials(slices: int, degrees: int = len(DEGREES), algorithms: int = 2) -> float:
    """The paper's bound on trials per capacity: a ternary search over r, and both of its ends."""
    return (math.log(slices, 1.5) + 2) * degrees * algorithms
