"""How far a router is from the best route of every token, found by trying them all.

Duo-LLM (Alizadeh et al. 2024, arXiv 2410.10846). A route names a module per layer: 0 small, 1 big, 2 skip;
its budget is the number of big layers. The paper leaves open how the tokens before one are routed; there are
two readings:

search_parallel  the whole sequence takes one route, for every route; each token then takes its own minimum.
                 The chosen losses come from different contexts: a bound, not a perplexity that could be
                 reached.
search_greedy    each token tries all routes after what the tokens before it chose, and takes the best:
                 reachable by someone who knows the targets.

Ties go to fewer big layers, then to the lowest route. Host code; the model comes in as functions.
"""

import dataclasses
import math

import numpy as np

from moejax.config import require


def route_table(layers: int, budget: int | None = None, options: int = 2) -> np.ndarray:
    """i8[R, L]: all routes through `layers`, in the order of counting; with a budget, those of that many big
    layers.

    Args:
      options: 2 for small and big, 3 with skip.
    """
    require(options in (2, 3), f"options={options} must be 2 (small, big) or 3 (with skip)")
    require(
        budget is None or 0 <= budget <= layers, f"budget={budget} must lie between 0 and layers={layers}"
    )
    place_L = options ** np.arange(layers)[::-1]
    route_RL = (np.arange(options**layers)[:, None] // place_L % options).astype(np.int8)
    return route_RL if budget is None else route_RL[count_big(route_RL) == budget]


def count_big(route_RL) -> np.ndarray:
    """Big layers of every route."""
    return np.sum(np.asarray(route_RL) == 1, axis=-1)


@dataclasses.dataclass(frozen=True)
class Oracle:
    """What `search_parallel` found for each number of big layers, C = L + 1; inf where none was tried."""

    route_RL: np.ndarray  # what was tried
    mean_R: np.ndarray  # loss of each route, if all tokens take it; nats per weighted token
    loss_CBT: np.ndarray
    best_CBT: np.ndarray  # index of a route
    weight_BT: np.ndarray

    def loss(self, budget: int | None = None) -> float:
        """Mean loss where every token takes its best route, of a budget or of all."""
        loss_BT = self.loss_CBT.min(axis=0) if budget is None else self.loss_CBT[budget]
        return _mean(loss_BT, self.weight_BT)

    def best(self, budget: int | None = None) -> np.ndarray:
        """i32[B, T]: the best route of every token."""
        if budget is not None:
            return self.best_CBT[budget]
        least_BT = np.argmin(self.loss_CBT, axis=0)
        return np.take_along_axis(self.best_CBT, least_BT[None], axis=0)[0]

    def fixed(self, budget: int | None = None) -> tuple[float, int]:
        """(mean loss, index) of the one best route for all tokens."""
        big_R = count_big(self.route_RL)
        mean_R = self.mean_R if budget is None else np.where(big_R == budget, self.mean_R, math.inf)
        order_R = np.lexsort((big_R, mean_R))
        return float(mean_R[order_R[0]]), int(order_R[0])


def search_parallel(losses, route_RL, weight_BT, chunk: int = 64) -> Oracle:
    """Try every route on whole sequences, keeping one minimum per token and budget: memory of O(L B T).

    Args:
      losses: i8[chunk, L] -> f32[chunk, B, T], as `ffn.duo.losses_of_routes`; always called with `chunk`
      routes. weight_BT: of each token in the means.
    """
    route_RL, weight_BT = np.asarray(route_RL), np.asarray(weight_BT, np.float64)
    R, L = route_RL.shape
    loss_CBT = np.full((L + 1, *weight_BT.shape), np.inf, np.float32)
    best_CBT = np.full(loss_CBT.shape, -1, np.int32)
    mean_R, big_R = np.empty(R), count_big(route_RL)
    for first in range(0, R, chunk):
        part = np.minimum(np.arange(first, first + chunk), R - 1)  # the last chunk repeats the last route
        loss_PBT = np.asarray(losses(route_RL[part]), np.float32)
        for r, loss_BT in zip(range(first, min(first + chunk, R)), loss_PBT, strict=False):
            mean_R[r] = _mean(loss_BT, weight_BT)
            better_BT = loss_BT < loss_CBT[big_R[r]]
            loss_CBT[big_R[r]][better_BT] = loss_BT[better_BT]
            best_CBT[big_R[r]][better_BT] = r
    return Oracle(route_RL, mean_R, loss_CBT, best_CBT, weight_BT)


def search_greedy(try_routes, pass_route, memory, tables) -> tuple[np.ndarray, np.ndarray]:
    """(i8[T, B, L] chosen routes, f32[T, B] their losses), one position after the other.

    Args:
      try_routes: (memory, position, i8[R, L]) -> f32[R, B], the loss of that position for each route.
      pass_route: (memory, position, i8[L, B]) -> memory, once every row has chosen.
      memory: of what came before the first position, a KV cache.
      tables: per position, the routes it may take; a budget that varies along the sequence is their choice.
    """
    chosen, losses = [], []
    for position, route_RL in enumerate(tables):
        route_RL = np.asarray(route_RL)
        route_RL = route_RL[np.argsort(count_big(route_RL), kind="stable")]
        loss_RB = np.asarray(try_routes(memory, position, route_RL), np.float32)
        best_B = np.argmin(loss_RB, axis=0)
        memory = pass_route(memory, position, route_RL[best_B].T)
        chosen.append(route_RL[best_B])
        losses.append(np.min(loss_RB, axis=0))
    return np.stack(chosen), np.stack(losses)


def random_patterns(route_RL, count: int, seed: int = 0) -> np.ndarray:
    """i8[count, L]: that many routes at random, without return; for the best of a few as a comparison."""
    rng = np.random.default_rng(seed)
    return np.asarray(route_RL)[np.sort(rng.choice(len(route_RL), min(count, len(route_RL)), replace=False))]


def _mean(loss_BT, weight_BT) -> float:
    return float(np.sum(loss_BT * weight_BT, dtype=np.float64) / np.sum(weight_BT))
