"""Gradual magnitude pruning: the weakest weights of the whole model leave in the course of its training.

"The Journey Matters: Average Parameter Count over Pre-training Unifies Sparse and Dense Scaling Laws" (Jin et
al., 2025, arXiv 2501.12486). At n events, evenly spaced between two steps, the largest (1-S)^(i/n) of all
matrix entries stay, i = 1..n, so that every event takes the same share of what is left; what has left never
comes back. With a density of 1 before, S / -ln(1-S) on average between, and 1-S after, the events that lie
between two shares of a run's compute lie between steps in closed form (`compute_schedule`).

Differs from the paper: weights that have left are 0 in the parameters, so that whatever reads these computes
with W*M, while the authors keep W and M side by side; both move alike, as no weight returns. Masks are a part
of the optimizer's state, so neither weight decay nor Adam touches them. The first event comes after an
update. Routers, biases and tied embeddings stay dense; the authors have no experts. Their matrices begin with
a standard deviation of fan_in^-1/2; here the unembedding and what writes into the residual stream begin
smaller and would be emptied first, so by default weights are compared in units of what their matrix began
with.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moejax.config import require
from moejax.specs import Normal
from moejax.training.rules import masks as mask
from moejax.training.rules.rule import Rule

ROUNDING = 1e-12  # floor((1 - 0.8) * 10) is 2, though its factors are a little less


def prune_schedule(sparsity: float, start: int, end: int, every: int) -> list[tuple[int, float]]:
    """(step, share kept from this step on) of every event; `every` divides end - start."""
    num = (end - start) // every + 1
    return [(start + i * every, (1 - sparsity) ** ((i + 1) / num)) for i in range(num)]


def compute_schedule(
    sparsity: float, steps: int, every: int, start: float = 0.25, end: float = 0.75
) -> tuple[int, int, float]:
    """(first event, last event, average density of the exact schedule) for events between shares of compute.

    Steps are rounded to multiples of `every`; the first is at least 1, the last within the run.

    Args:
      sparsity: S, from 0 to below 1.
      steps: of the run.
      every: steps between events.
      start, end: shares of the run's compute, which is proportional to density.
    """
    pruning = sparsity / -math.log1p(-sparsity) if sparsity else 1.0  # mean density between the events
    before, between, after = start, (end - start) / pruning, (1 - end) / (1 - sparsity)
    whole = before + between + after
    first = max(round(before / whole * steps / every) * every, 1)
    between = round(((before + between) / whole * steps - first) / every)
    room = (steps - 1 - first) // every
    last = first + max(min(between, room), 0) * every
    return first, last, 1 / whole


class PruneState(NamedTuple):
    """Of the rule; `inner` is that of the optimizer within."""

    update: jax.Array  # i32; updates applied
    masks: dict[str, jax.Array]  # bool, by path
    metrics: dict[str, jax.Array]
    inner: optax.OptState


@dataclasses.dataclass(frozen=True)
class GradualPrune(Rule):
    """Prune to `sparsity` between two shares of the run's compute."""

    sparsity: float  # S: share of all matrix entries that leaves
    start: float = 0.25  # share of compute before the first event
    end: float = 0.75  # share of compute before the last event
    every: int = 100  # steps between events
    unit: str = "start"  # weights are compared in units of: start (std of their matrix then) | absolute
    dense: tuple[str, ...] = ("embed", "shared/*", "*/score/*", "*/select/*", "*bias")  # globs: never pruned

    def __post_init__(self):
        require(0 <= self.sparsity < 1, f"sparsity={self.sparsity} must be at least 0 and below 1")
        require(
            0 <= self.start <= self.end <= 1,
            f"start={self.start}, end={self.end} are shares of the compute; choose 0 <= start <= end <= 1",
        )
        require(self.every >= 1, f"every={self.every} must be at least 1")
        known = ("start", "absolute")
        require(self.unit in known, f"unit={self.unit!r} is not one of {', '.join(known)}")

    def events(self, steps: int) -> list[tuple[int, float]]:
        """(step, share kept from this step on) in a run of so many steps."""
        first, last, _ = compute_schedule(self.sparsity, steps, self.every, self.start, self.end)
        require(
            first < steps,
            f"pruning begins with step {first}, but train.steps={steps}; choose more steps, a smaller "
            f"every than {self.every}, or a start before {self.start}",
        )
        return prune_schedule(self.sparsity, first, last, self.every)

    def around(self, optimizer, specs, steps):
        """`optimizer` for the weights that are left, and events after updates; unchanged at sparsity 0."""
        if self.sparsity == 0:
            return optimizer
        matrices = mask.prunable(specs, self.dense)
        require(len(matrices) > 0, f"dense={self.dense} leaves no matrix to prune; remove a glob from it")
        total = sum(math.prod(spec.shape) for spec in matrices.values())
        events = self.events(steps)
        first = events[0][0]
        kept = np.stack([mask.count(math.floor(share * total * (1 + ROUNDING))) for _, share in events])

        def init(params):
            weights = mask.select(params, matrices)
            masks = {path: jnp.ones_like(w, bool) for path, w in weights.items()}
            return PruneState(jnp.int32(0), masks, _metrics(masks, matrices), optimizer.init(params))

        def update(grads, state, params, *, apply=True):
            grads = mask.where(state.masks, grads)
            updates, inner = optimizer.update(grads, state.inner, params, apply=apply)
            number = state.update + jnp.asarray(apply, jnp.int32)
            event, late = jnp.divmod(number - first, self.every)

            def prune():
                weights = mask.select(optax.apply_updates(params, updates), matrices)
                weights = {path: w / self._unit(matrices[path]) for path, w in weights.items()}
                masks = mask.global_magnitude(weights, state.masks, jnp.asarray(kept)[event])
                return masks, _metrics(masks, matrices)

            due = jnp.asarray(apply) & (late == 0) & (event >= 0) & (event < len(events))
            masks, metrics = jax.lax.cond(due, prune, lambda: (state.masks, state.metrics))
            updates = mask.where(masks, updates, jax.tree.map(jnp.negative, params))  # w - w is 0
            return updates, PruneState(number, masks, metrics, inner)

        return optax.GradientTransformationExtraArgs(init, update)

    def _unit(self, spec) -> float:
        return spec.init.std if self.unit == "start" and isinstance(spec.init, Normal) else 1.0


def _metrics(masks, matrices):
    """How many weights are left, how many of them a token passes, and the share of the emptiest matrix."""
    left = {path: mask.as_float(mask.num_true({path: m})) for path, m in masks.items()}
    return {
        "prune/weights": sum(left.values()),
        "prune/active_weights": sum(number * matrices[path].used for path, number in left.items()),
        "prune/min_density": jnp.min(
            jnp.stack([jnp.min(share) for share in mask.density(masks, matrices).values()])
        ),
    }
