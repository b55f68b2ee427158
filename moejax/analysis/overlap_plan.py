"""How many chunks to cut a MoE layer into, and which gradients to send while it runs.

FSMoE: A Flexible and Scalable Training System for Sparse Mixture-of-Experts Models (Pan et al. 2025, arXiv
2501.10714). A layer in r chunks keeps three resources busy:

    between nodes:  D_1 .. D_r, [gradient all-reduce], C_1 .. C_r     (the two all-to-alls)
    inside a node:  AG_1 .. AG_r, RS_1 .. RS_r                        (gathered and scattered expert slices)
    compute:        E_1 .. E_r,                  with D_i -> AG_i -> E_i -> RS_i -> C_i

Its time is that of the longest chain of tasks (`layer_time`); `simulate` plays the schedule event by event.

Differs from the paper: the longest of all chains instead of a table of cases over four of them. The four are
enough where gathering and scattering take equally long; the others make the time exact where they do not.
Degrees are enumerated. What step 1 leaves over is spread by dynamic programming on a grid instead of
differential evolution. Times are in ms and sizes in elements; any other pair of units would do.
"""

import dataclasses

import numpy as np

from moejax.config import require

DEGREES = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Linear:
    """Time of an operation on n elements: alpha + beta n."""

    alpha: float  # ms to start it
    beta: float  # ms per element

    def __post_init__(self):
        require(
            self.alpha >= 0 and self.beta >= 0,
            f"a cost of {self.alpha:.3g} ms + {self.beta:.3g} ms per element is not possible; both must be "
            "at least 0: measure larger sizes, more often, or fit with through_origin=True",
        )

    def __call__(self, size: float) -> float:
        return self.alpha + self.beta * size


def fit_linear(sizes, times, through_origin: bool = False) -> tuple[Linear, float]:
    """Least squares of measured times, with the share of their variance that it explains (r squared).

    Args:
      sizes: elements, in the range that will be asked for.
      times: ms.
      through_origin: there is no time to start; for measurements that would give a negative one.

    Raises:
      UsageError: the best line has a negative coefficient, or there are not two sizes.
    """
    sizes, times = np.asarray(sizes, np.float64), np.asarray(times, np.float64)
    require(len(np.unique(sizes)) >= 2, f"sizes={sizes.tolist()} fit no line; measure at least two sizes")
    columns = sizes[:, None] ** ([1] if through_origin else [0, 1])
    solution = np.linalg.lstsq(columns, times, rcond=None)[0]
    left = times - columns @ solution
    alpha, beta = (0.0, *solution) if through_origin else solution
    spread = np.sum((times - times.mean()) ** 2)
    return Linear(float(alpha), float(beta)), float(1 - left @ left / spread) if spread else 1.0


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Times of the parts of one chunk."""

    a2a: float  # one all-to-all between nodes
    ag: float  # all-gather inside a node
    exp: float  # experts
    rs: float  # reduce-scatter inside a node


@dataclasses.dataclass(frozen=True)
class Layer:
    """Costs of a MoE layer, each part over its share of `n` elements."""

    a2a: Linear
    ag: Linear
    exp: Linear
    rs: Linear
    n: Chunk  # elements of the whole layer per part

    def chunk(self, degree: int) -> Chunk:
        """Times of one of `degree` equal chunks."""
        parts = (field.name for field in dataclasses.fields(Chunk))
        return Chunk(*(getattr(self, part)(getattr(self.n, part) / degree) for part in parts))

    def backward(self) -> "Layer":
        """The layer's backward pass: experts take two products where there was one."""
        return dataclasses.replace(self, exp=Linear(2 * self.exp.alpha, 2 * self.exp.beta))


def sums(chunk: Chunk, degree: int, gradients: float = 0.0) -> tuple[float, float, float, float]:
    """f1 .. f4: the layer's time if all-to-alls and gradients, experts, all-to-alls, or the node decide it.

    Args:
      chunk: of `degree` equal ones.
      degree: chunks.
      gradients: ms of gradient all-reduce to send meanwhile.
    """
    inside = chunk.ag + chunk.rs
    return (
        2 * degree * chunk.a2a + gradients,
        2 * chunk.a2a + inside + degree * chunk.exp,
        2 * degree * chunk.a2a + inside,
        2 * chunk.a2a + degree * inside,
    )


def layer_time(chunk: Chunk, degree: int, gradients: float = 0.0) -> float:
    """ms of a layer in `degree` chunks: the longest chain, be it one of the paper's four or an uneven one."""
    chain = 2 * chunk.a2a + chunk.ag + chunk.rs
    longer = (degree - 1) * max(chunk.ag, chunk.rs)
    return max(
        *sums(chunk, degree, gradients),
        chain + chunk.exp + longer,
        chain + (degree - 1) * chunk.a2a + longer,
    )


def slack(chunk: Chunk, degree: int) -> float:
    """ms of gradient all-reduce that a layer hides without taking longer, the t_olp of a MoE part."""
    return layer_time(chunk, degree) - 2 * degree * chunk.a2a


def best_degree(layer: Layer, gradients: float = 0.0, degrees=DEGREES) -> tuple[int, float]:
    """The number of chunks that takes the least time, the smallest of equals; and that time."""
    degree = min(degrees, key=lambda degree: layer_time(layer.chunk(degree), degree, gradients))
    return degree, layer_time(layer.chunk(degree), degree, gradients)


def simulate(chunk: Chunk, degree: int, gradients: float = 0.0) -> float:
    """Play the schedule: every resource takes its tasks in order, each as soon as what it needs is done."""
    span = range(degree)
    queues = {
        "between": [("D", i) for i in span] + [("gradients", 0)] + [("C", i) for i in span],
        "inside": [("AG", i) for i in span] + [("RS", i) for i in span],
        "compute": [("E", i) for i in span],
    }
    times = {"D": chunk.a2a, "AG": chunk.ag, "E": chunk.exp, "RS": chunk.rs, "C": chunk.a2a}
    times["gradients"] = gradients
    needs = {"AG": "D", "E": "AG", "RS": "E", "C": "RS"}
    done, free = {}, dict.fromkeys(queues, 0.0)
    while any(queues.values()):
        for resource, queue in queues.items():
            while queue and (queue[0][0] not in needs or (needs[queue[0][0]], queue[0][1]) in done):
                part, i = task = queue.pop(0)
                ready = done[needs[part], i] if part in needs else 0.0
                free[resource] = done[task] = max(free[resource], ready) + times[part]
    return max(done.values())


@dataclasses.dataclass(frozen=True)
class Gradients:
    """What to send during each layer, in the order of the backward pass."""

    sizes: tuple[float, ...]  # elements sent during each layer
    left: float  # elements that found no layer


def hide(produced, overlappable, all_reduce: Linear) -> Gradients:
    """Step 1: send during every layer as much as it hides, of what the layers before it and it produced.

    Args:
      produced: elements of gradient per layer, in backward order.
      overlappable: ms that each layer hides: `slack` of its MoE part and the time of its dense part.
      all_reduce: cost of sending gradients.
    """
    waiting, sizes = 0.0, []
    for new, room in zip(produced, overlappable, strict=True):
        waiting += new
        fits = max(0.0, room - all_reduce.alpha) / all_reduce.beta if all_reduce.beta else waiting
        sizes.append(min(waiting, fits))
        waiting -= sizes[-1]
    return Gradients(tuple(sizes), waiting)


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """What one layer does in training."""

    forward: int  # chunks
    backward: int  # chunks
    gradients: float  # elements of gradient to send during its backward pass


def plan(layers, dense, produced, all_reduce: Linear, blocks: int = 64) -> tuple[LayerPlan, ...]:
    """Degrees of every layer and the gradients to send during it: step 1, then what is left spread (step 2).

    Args:
      layers: forward costs of the MoE layers, in the order of the backward pass.
      dense: ms of what lies between a MoE layer and the next one, in the backward pass.
      produced: elements of gradient that each layer and its dense part produce.
      all_reduce: cost of sending gradients.
      blocks: of equal size, into which what is left is cut.
    """
    backward = [layer.backward() for layer in layers]
    rooms = []
    for layer, free in zip(backward, dense, strict=True):
        degree = best_degree(layer)[0]
        rooms.append(free + slack(layer.chunk(degree), degree))
    hidden = hide(produced, rooms, all_reduce)

    def exposed(i, size):
        """Gradient ms that fall to the MoE part when layer i sends `size` elements."""
        return max(0.0, all_reduce(size) - dense[i]) if size > 0 else 0.0

    def cost(i, extra):
        return best_degree(backward[i], exposed(i, hidden.sizes[i] + extra))[1]

    unsent = np.cumsum(produced) - np.cumsum(hidden.sizes)
    sizes = np.add(hidden.sizes, _spread(cost, unsent, hidden.left, blocks))
    degrees = [best_degree(layer, exposed(i, sizes[i]))[0] for i, layer in enumerate(backward)]
    forward = [best_degree(layer)[0] for layer in layers]
    return tuple(LayerPlan(*row) for row in zip(forward, degrees, map(float, sizes), strict=True))


def _spread(cost, unsent, left: float, blocks: int) -> np.ndarray:
    """Extra elements per layer, in all `left`, that add the least time; none is sent before it is produced.

    Args:
      cost: (layer, extra elements) -> ms.
      unsent: elements that wait after each layer, an upper bound on what has been sent extra by then.
      left: elements to spread.
      blocks: in which they are sent.
    """
    if left <= 0:
        return np.zeros(len(unsent))
    block = left / blocks
    best, choices = np.where(np.arange(blocks + 1) == 0, 0.0, np.inf), []  # ms by blocks sent so far
    for i, waiting in enumerate(unsent):
        price = np.array([cost(i, extra * block) for extra in range(blocks + 1)])
        before, after = np.arange(blocks + 1)[:, None], np.arange(blocks + 1)[None]
        allowed = (after >= before) & (after * block <= waiting * (1 + 1e-9))
        total = np.where(allowed, best[:, None] + price[np.maximum(after - before, 0)], np.inf)
        choices.append(np.argmin(total, axis=0))
        best = np.min(total, axis=0)
    sent, extra = blocks, np.zeros(len(unsent))
    for i in reversed(range(len(unsent))):
        earlier = choices[i][sent]
        extra[i], sent = (sent - earlier) * block, earlier
    return extra
