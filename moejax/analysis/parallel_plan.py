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

ALGORITHMS = ("linear", "two_level")


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

    def rows(self, factor: float) -> float:
        """Slots that one device fills at this capacity factor, over all experts."""
        return self.k * factor * self.tokens


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


def messages(devices: int, node: int, size: float, algorithm: str) -> Messages:
    """Messages to other nodes: one per foreign device, or, in two levels, one per foreign node.

    Args:
      devices: that exchange.
      node: devices in a node.
      size: elements that one device sends in all.
      algorithm: of `ALGORITHMS`.
    """
    if algorithm == "linear" or node >= devices:
        return Messages(max(devices - node, 0), size / devices)
    return Messages(devices // node - 1, size * node / devices)


def exchange_time(costs: Costs, devices: int, size: float, algorithm: str) -> float:
    """ms of one all-to-all in which every device sends `size` elements, its own share included."""
    far, near = messages(devices, costs.node, size, algorithm), min(costs.node, devices)
    piece = size / near if algorithm == "two_level" else size / devices
    return far.count * costs.between(far.size) + (near - 1) * costs.inside(piece)


@dataclasses.dataclass(frozen=True)
class Choice:
    """How one capacity is run; the fields of `dispatch.adaptive.Mode`."""

    factor: float
    r: int
    degree: int
    algorithm: str


def step_time(shape: MoeShape, costs: Costs, choice: Choice) -> float:
    """ms of a forward and a backward pass of the layer in this mode."""
    rows = shape.rows(choice.factor)
    arithmetic = rows * shape.products * shape.width * shape.hidden
    weights = traffic(shape, rows, choice.r).weights
    time = 2 * costs.gather(weights) if weights else 0.0
    if choice.r == 0:
        return time + 3 * costs.compute(arithmetic)
    size = choice.r * rows * shape.width / choice.degree
    a2a = exchange_time(costs, shape.devices, size, choice.algorithm)
    experts = costs.compute(arithmetic / choice.degree)
    passes = (Chunk(a2a, 0.0, experts, 0.0), Chunk(a2a, 0.0, 2 * experts, 0.0))
    return time + sum(layer_time(chunk, choice.degree) for chunk in passes)


def plan(shape: MoeShape, costs: Costs, factors, degrees=DEGREES) -> tuple[Choice, ...]:
    """The fastest choice for every capacity factor; the simplest of equals."""

    def fastest(factor):
        sharing = degrees_of_sharing(shape.slices)
        every = itertools.product([factor], sharing, degrees, ALGORITHMS)
        return min((Choice(*row) for row in every), key=lambda choice: step_time(shape, costs, choice))

    return tuple(map(fastest, factors))


def num_trials(slices: int, degrees: int = len(DEGREES), algorithms: int = len(ALGORITHMS)) -> float:
    """The paper's bound on trials per capacity: a ternary search over r, and both of its ends."""
    return (math.log(slices, 1.5) + 2) * degrees * algorithms
