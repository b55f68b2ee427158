"""Models with two modules per layer (`ffn.duo`) on many routes: what `papers/duo_llm.py` measures with.

N counts the tokens of a batch, row after row; losses are nats of each.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moejax.analysis import route_controls
from moejax.analysis.route_oracle import Oracle, count_big, route_table, search_greedy, search_parallel
from moejax.bench.replicas import Trained
from moejax.ffn import duo
from moejax.losses.budget import Budget
from moejax.losses.next_token import NextToken
from moejax.model import forward as decoder
from moejax.seams import Batch
from moejax.serving.model import Model
from moejax.training import objective
from moejax.training.data.batches import BatchSource
from moejax.training.data.packing import Rows
from moejax.training.program import as_batch

SHARPEST = 10.0  # beta at the end of a router's training, which begins with 1
ROUTER_RATE = 1e-2  # Adam's


@dataclasses.dataclass(frozen=True)
class Tried:
    """One model on all routes of small and big, whole sequences on one route."""

    model: Model
    seed: int
    batch: Batch
    route_RL: np.ndarray
    loss_RN: np.ndarray
    oracle: Oracle

    @classmethod
    def of(cls, trained: Trained, batch: Batch) -> "Tried":
        layers = trained.model.cfg.num_layers
        route_RL, place_L = route_table(layers), 2 ** np.arange(layers)[::-1]
        loss_RN = losses_of_routes(trained.model, batch, route_RL)
        found = search_parallel(
            lambda part_RL: loss_RN[part_RL @ place_L][:, None], route_RL, np.ones((1, loss_RN.shape[1]))
        )
        return cls(trained.model, trained.seed, batch, route_RL, loss_RN, found)

    def rows(self, count: int) -> Batch:
        """Evenly spread rows of the batch."""
        return jax.tree.map(lambda x: x[self._spread(count)], self.batch)

    def of_budget(self, big: int, rows: int | None = None) -> np.ndarray:
        """f32[routes, N]: losses of the routes with so many big layers, of all rows or of `rows(count)`."""
        loss_RN = self.loss_RN[count_big(self.route_RL) == big]
        if rows is None:
            return loss_RN
        return loss_RN.reshape(len(loss_RN), *self.batch.token_BT.shape)[:, self._spread(rows)].reshape(
            len(loss_RN), -1
        )

    def equally_many(self, big: int) -> float:
        """Mean loss of the best of one route per layer, which is how many there are with one big layer."""
        loss_RN = self.of_budget(big)
        return float(route_controls.expected_best(loss_RN, min(len(loss_RN), self.route_RL.shape[1])).mean())

    def at_random(self, big: int) -> float:
        """Mean loss where every token takes a route of its own, drawn among those of a budget."""
        route_RL, shape = route_table(self.route_RL.shape[1], big), self.batch.token_BT.shape
        pick_BT = np.random.default_rng(self.seed).integers(0, len(route_RL), shape)
        sides = duo.route_sides(self.model.cfg, jnp.moveaxis(route_RL[pick_BT], -1, 0))
        return float(_look(self.model.params, self.batch, sides, None, m=self.model.cfg)[0].mean())

    def skipping(self, big: int) -> float:
        """Mean loss of the best routes that skip all layers but so many big ones."""
        route_RL = route_table(self.route_RL.shape[1], big)
        route_RL = np.where(route_RL == duo.BIG, route_RL, duo.SKIP)
        return float(losses_of_routes(self.model, self.batch, route_RL).min(axis=0).mean())

    def share_big(self, big: int) -> np.ndarray:
        """f64[L]: tokens whose best route of a budget is big there."""
        return (self.route_RL[self.oracle.best(big)[0]] == duo.BIG).mean(axis=0)

    def share_of_gain_by_id(self) -> float:
        """Of what the best routes gain over all big: routes by token id, on rows that did not choose them."""
        B, T = self.batch.token_BT.shape
        fit_N = np.repeat(np.arange(B) % 2 == 0, T)
        best_N = route_controls.best_by_id(self.loss_RN, np.asarray(self.batch.token_BT).ravel(), fit_N)
        by_id_N = np.take_along_axis(self.loss_RN, best_N[None], axis=0)[0]
        big, by_id, best = (x[~fit_N].mean() for x in (self.loss_RN[-1], by_id_N, self.loss_RN.min(axis=0)))
        return float((big - by_id) / (big - best))

    def _spread(self, count: int) -> np.ndarray:
        B = len(self.batch.token_BT)
        return np.linspace(0, B - 1, min(count, B)).astype(int)


def losses_of_routes(model: Model, batch: Batch, route_RL: np.ndarray) -> np.ndarray:
    """f32[R, N]: all tokens on one route, for every route."""
    loss_RBT = _every(model.params, batch=batch, route_RL=route_RL, m=model.cfg)
    return np.asarray(loss_RBT).reshape(len(route_RL), -1)


def losses_under_noise(model: Model, batch: Batch, count: int, spread: float, seed: int) -> np.ndarray:
    """f32[count, N]: the model that is big everywhere, its weights disturbed until losses spread as asked.

    Args:
      spread: mean over tokens of the standard deviation over candidates, in nats.
    """
    keys = jax.random.split(jax.random.key(seed), count)
    run = functools.partial(_disturbed, model.params, batch=batch, m=model.cfg)
    low, high = -7.0, 0.0  # log of the noise, in root mean squares of each weight
    for _ in range(7):
        middle = (low + high) / 2
        wide = route_controls.spread(_flat(run(keys, np.exp(middle)))) > spread
        low, high = (low, middle) if wide else (middle, high)
    return _flat(run(keys, np.exp((low + high) / 2)))


def losses_token_by_token(model: Model, batch: Batch, route_RL: np.ndarray) -> np.ndarray:
    """f32[N]: each token on the best of `route_RL` after what the tokens before it chose."""
    B, T = batch.token_BT.shape

    def column(t: int) -> Batch:
        return jax.tree.map(lambda x: x[:, t : t + 1], batch)

    def tried(cache, t, own_RL):
        return _try(model.params, batch=column(t), cache=cache, route_RL=own_RL, m=model.cfg)

    def passed(cache, t, route_LB):
        return _pass(model.params, batch=column(t), cache=cache, route_LB=route_LB, m=model.cfg)

    cache = decoder.init_cache(model.cfg, B, T)
    return search_greedy(tried, passed, cache, [route_RL] * T)[1].T.ravel()


def with_routers(model: Model, rows: Rows, steps: int, budget: Budget, batch_rows: int, seed: int) -> Model:
    """The same modules, frozen, with a linear router per layer that learned a share of big layers."""
    m, losses = _choosing(model.cfg, duo.Learned()), (NextToken(), budget)
    w_LDM = jax.random.normal(jax.random.key(seed), (m.num_layers, m.width, len(duo.MODULES))) * m.width**-0.5
    state = (w_LDM, optax.adam(ROUTER_RATE).init(w_LDM))
    source = BatchSource(rows, batch_rows, seed)
    for step in range(steps):
        beta = 1 + (SHARPEST - 1) * step / max(steps - 1, 1)
        state = _router_step(state, model.params, as_batch(source[step]), beta, m=m, losses=losses)
    return dataclasses.replace(model, cfg=m, params=_with_router(model.params, SHARPEST * state[0]))


def routed(model: Model, batch: Batch, mixed: bool = False) -> tuple[np.ndarray, float]:
    """(f32[N] losses, share of big layers) of routers that choose, or mix both modules as in training."""
    loss_BT, share = _look(model.params, batch, None, jax.random.key(0) if mixed else None, m=model.cfg)
    return np.asarray(loss_BT).ravel(), float(share)


@functools.partial(jax.jit, static_argnames="m")
def _look(params, batch, sides, key, *, m):
    output = decoder.forward(
        params, m, batch, sides=sides, key=key, probe=lambda out, batch: out.routing.gate_BTK[..., duo.BIG]
    )
    return _nats(output, batch), jnp.mean(jnp.concatenate(jax.tree.leaves(output.probes)))


def _nats(output, batch):
    share_BTV = jax.nn.log_softmax(output.logits_BTV)
    return -jnp.take_along_axis(share_BTV, batch.target_BT[..., None], axis=-1)[..., 0]


@functools.partial(jax.jit, static_argnames="m")
def _disturbed(params, key_C, noise, *, batch, m):
    """f32[C, B, T]: a disturbance per key."""

    def one(key):
        leaves, tree = jax.tree.flatten(params)
        own = [
            w + noise * jnp.sqrt(jnp.mean(jnp.square(w))) * jax.random.normal(k, w.shape)
            for w, k in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
        ]
        return _nats(decoder.forward(tree.unflatten(own), m, batch), batch)

    return jax.lax.map(one, key_C)


@functools.partial(jax.jit, static_argnames=("m", "losses"))
def _router_step(state, params, batch, beta, *, m, losses):
    w_LDM, opt_state = state
    key = jax.random.key(0)  # its being there says that modules are mixed

    def total(w_LDM):
        stats = objective.stats_of(_with_router(params, beta * w_LDM), m, losses, None, batch, key)
        return objective.total_of(losses, tuple(loss.init(m) for loss in losses), stats)[0]

    updates, opt_state = optax.adam(ROUTER_RATE).update(jax.grad(total)(w_LDM), opt_state)
    return optax.apply_updates(w_LDM, updates), opt_state


def _choosing(m, choice):
    """The model of one group of equal blocks, its modules chosen otherwise."""
    (group,) = m.groups
    (block,) = group.blocks
    block = dataclasses.replace(block, ffn=dataclasses.replace(block.ffn, choice=choice))
    return dataclasses.replace(m, groups=(dataclasses.replace(group, blocks=(block,)),))


def _with_router(params, w_LDM):
    block = params["group0"]["block0"]
    ffn = block["ffn"] | {"choice": {"w": w_LDM}}
    return params | {"group0": {"block0": block | {"ffn": ffn}}}


def _flat(loss_CBT) -> np.ndarray:
    return np.asarray(loss_CBT).reshape(len(loss_CBT), -1)


_every = jax.jit(duo.losses_of_routes, static_argnames="m")
_try = jax.jit(duo.try_routes, static_argnames="m")
_pass = jax.jit(duo.pass_route, static_argnames="m")
