"""Expert placement by affinity: experts that follow one another live on one device.

Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts Model Inference (ExFlow; 2024,
arXiv 2401.08383). n_j[i, p] counts tokens that pass expert i of layer j and p of layer j+1. A placement gives
every device E/P experts of every layer so that few tokens change device: it maximises
sum_j sum_ip n_j[i, p] [i and p on one device].

Differs from the paper: no MIP solver. With all other layers fixed, placing one layer is a transportation
problem, solved exactly as a linear assignment; layers are swept up and down until nothing is gained, from the
contiguous start and from several first layers that all later ones follow greedily. With k > 1 experts per
token, first choices are followed.
"""

import dataclasses

import numpy as np
from scipy.optimize import linear_sum_assignment

from moejax.config import require


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices in nodes, numbered node after node."""

    devices: int  # P, in all
    nodes: int = 1

    def __post_init__(self):
        good = self.nodes >= 1 and self.devices >= 1 and self.devices % self.nodes == 0
        require(
            good,
            f"{self.devices} devices in {self.nodes} nodes is impossible; every node needs equally many",
        )

    @property
    def per_node(self) -> int:
        return self.devices // self.nodes


@dataclasses.dataclass(frozen=True)
class PlacementCost:
    """What a placement costs, per token and whole pass."""

    hops: float  # changes of device
    intra: float  # of these, within a node
    inter: float  # of these, between nodes
    transitions: int  # L - 1, at most so many hops
    load_LP: np.ndarray  # share of the tokens that each device computes at each layer

    @property
    def hop_fraction(self) -> float:
        """Share of the transitions that change device."""
        return self.hops / self.transitions

    @property
    def max_load(self) -> float:
        """Tokens of the busiest device and layer, in units of the mean."""
        return float(self.load_LP.max() * self.load_LP.shape[1])


def transition_counts(expert_LN: np.ndarray, num_experts: int) -> np.ndarray:
    """n [L-1, E, E]: tokens at expert i of a layer and p of the next; a token that is nowhere counts not.

    Args:
      expert_LN: the first choice of each token at each layer, such as `RoutingTrace.expert_LNK[:, :, 0]`;
        E or more is nowhere.
    """
    L, _ = expert_LN.shape
    E = num_experts
    require(L >= 2, f"{L} layers with experts have no transition between them; use a model with at least 2")
    counts = np.zeros((L - 1, E, E), np.int64)
    for j in range(L - 1):
        here_N, next_N = expert_LN[j].astype(np.int64), expert_LN[j + 1].astype(np.int64)
        there_N = (here_N < E) & (next_N < E)
        counts[j] = np.bincount(here_N[there_N] * E + next_N[there_N], minlength=E * E).reshape(E, E)
    return counts


def affinity(counts: np.ndarray) -> np.ndarray:
    """P(p at layer j+1 | i at layer j), [L-1, E, E]; 1/E where an expert saw no token."""
    total = counts.sum(axis=2, keepdims=True)
    return np.divide(counts, total, out=np.full(counts.shape, 1 / counts.shape[2]), where=total > 0)


def contiguous(num_layers: int, num_experts: int, num_devices: int) -> np.ndarray:
    """The placement of a plain split, [L, E]: expert e on device e // (E/P)."""
    _require_even(num_experts, num_devices)
    return np.tile(np.arange(num_experts) // (num_experts // num_devices), (num_layers, 1))


def solve_placement(counts: np.ndarray, topology: Topology, restarts: int = 8, seed: int = 0) -> np.ndarray:
    """Device of every expert of every layer, i32 [L, E], with E/P experts of each layer on each.

    Nodes are split first, then the experts of each node among its devices, so that few tokens change node.

    Args:
      counts: of `transition_counts`.
      restarts: random first layers to start from, besides the contiguous one.
    """
    L, E = len(counts) + 1, counts.shape[1]
    _require_even(E, topology.devices)
    rng = np.random.default_rng(seed)
    node_LE = _split(counts, np.zeros((L, E), np.int64), topology.nodes, restarts, rng)
    return _split(counts, node_LE, topology.per_node, restarts, rng).astype(np.int32)


def ascend(counts: np.ndarray, start: np.ndarray, num_devices: int) -> tuple[np.ndarray, list[int]]:
    """(placement, transitions that stay on a device after each sweep), swept until nothing is gained."""
    place = start.copy()
    stays = [_stays(counts, place)]
    L = len(place)
    while True:
        for j in (*range(L), *reversed(range(L - 1))):
            place[j] = _best_layer(counts, place, j, num_devices)
        stays.append(_stays(counts, place))
        if stays[-1] == stays[-2]:
            return place, stays


def placement_cost(counts: np.ndarray, placement: np.ndarray, topology: Topology) -> PlacementCost:
    """What `placement` [L, E] costs the tokens of `counts`, best those that it was not solved for."""
    P = topology.devices
    here, there = placement[:-1, :, None], placement[1:, None, :]
    moved, far = here != there, here // topology.per_node != there // topology.per_node
    total = max(int(counts.sum()), 1)
    per_token = lambda chosen: float(counts[chosen].sum() / total * len(counts))
    tokens_LE = np.concatenate([counts.sum(axis=2), counts[-1:].sum(axis=1)])
    load_LP = np.stack(
        [np.bincount(own, tokens, P) for own, tokens in zip(placement, tokens_LE, strict=True)]
    ) / np.maximum(tokens_LE.sum(axis=1, keepdims=True), 1)
    return PlacementCost(per_token(moved), per_token(moved & ~far), per_token(far), len(counts), load_LP)


def placement_to_order(placement: np.ndarray) -> np.ndarray:
    """Which expert stands at each place, [L, E], so that equal parts of a row are devices 0, 1, ...

    `moejax.surgery.cut.permute` puts the experts of a model in that order.
    """
    return np.argsort(placement, axis=1, kind="stable").astype(np.int32)


def _require_even(num_experts: int, num_devices: int) -> None:
    require(
        num_experts % num_devices == 0,
        f"{num_experts} experts do not split evenly over {num_devices} devices; "
        "choose a number of devices that divides them",
    )


def _split(counts, region_LE, parts: int, restarts: int, rng) -> np.ndarray:
    """Each region's experts among `parts` devices of its own, by the transitions within the region."""
    device_LE = np.zeros_like(region_LE)
    for region in range(region_LE.max() + 1):
        own_LE = np.stack([np.flatnonzero(row == region) for row in region_LE])
        pairs = zip(counts, own_LE[:-1], own_LE[1:], strict=True)
        own_counts = np.stack([n[np.ix_(here, after)] for n, here, after in pairs])
        place_LE = _solve(own_counts, parts, restarts, rng)
        np.put_along_axis(device_LE, own_LE, region * parts + place_LE, axis=1)
    return device_LE


def _solve(counts, num_devices: int, restarts: int, rng) -> np.ndarray:
    """The best placement of all starts."""
    start = contiguous(len(counts) + 1, counts.shape[1], num_devices)
    firsts = [start[0], *(rng.permutation(start[0]) for _ in range(restarts))]
    starts = [start, *(_follow(counts, start, first_E, num_devices) for first_E in firsts)]
    found = [ascend(counts, start, num_devices) for start in starts]
    best, _ = max(found, key=lambda pair: pair[1][-1])
    return best


def _follow(counts, start, first_E, num_devices: int) -> np.ndarray:
    """A first layer, and every later one at its best beside the one before it."""
    place = start.copy()
    place[0] = first_E
    for j in range(1, len(place)):
        place[j] = _best_layer(counts[:j], place[: j + 1], j, num_devices)
    return place


def _best_layer(counts, place, j: int, num_devices: int) -> np.ndarray:
    """The best placement of layer j beside its neighbours as they are; the present one, if none is better."""
    E = place.shape[1]
    device_EP = np.eye(num_devices, dtype=np.int64)
    gain_EP = np.zeros((E, num_devices), np.int64)
    if j > 0:
        gain_EP += counts[j - 1].T @ device_EP[place[j - 1]]
    if j < len(counts):
        gain_EP += counts[j] @ device_EP[place[j + 1]]
    seats = E // num_devices
    _, seat_E = linear_sum_assignment(np.repeat(gain_EP, seats, axis=1), maximize=True)
    new, expert_E = seat_E // seats, np.arange(E)
    better = gain_EP[expert_E, new].sum() > gain_EP[expert_E, place[j]].sum()
    return new if better else place[j]


def _stays(counts, place) -> int:
    """Transitions between experts of one device."""
    return int(counts[place[:-1, :, None] == place[1:, None, :]].sum())
