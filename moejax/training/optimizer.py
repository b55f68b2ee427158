"""AdamW, schedules and clipping, as one optax transformation that can leave a step out."""

import jax
import jax.numpy as jnp
import optax

from moejax import specs as sp
from moejax.config import OptimConfig, TrainConfig


def of_run(cfg: TrainConfig, specs) -> optax.GradientTransformationExtraArgs:
    """AdamW within the rules of the run."""
    optimizer = make(cfg.optim, cfg.steps, specs)
    for rule in cfg.rules:
        optimizer = rule.around(optimizer, specs, cfg.steps)
    return optimizer


def schedule(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by update: linear warm-up, then constant, linear or cosine down to `final_fraction`."""
    warmup = min(cfg.warmup_steps, steps)
    rest = max(steps - warmup, 1)
    peak, final = cfg.learning_rate, cfg.learning_rate * cfg.final_fraction
    tail = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, cfg.final_fraction),
    }[cfg.schedule]()
    # The first update already moves: a rate of 0 at count 0 would waste a step.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, tail], [warmup])


def make(cfg: OptimConfig, steps: int, specs) -> optax.GradientTransformationExtraArgs:
    """Clip, Adam, decoupled weight decay on matrices, schedule.

    `update(..., apply=False)` leaves the state as it is; its updates are not to be used then.
    """
    decayed = sp.tree_map(lambda spec: sum(dim != "layer" for dim in spec.dims) >= cfg.decay_min_rank, specs)
    return optax.chain(
        clip(cfg.clip_norm) if cfg.clip_norm else optax.identity(),
        adam(cfg.b1, cfg.b2, cfg.eps),
        optax.add_decayed_weights(cfg.weight_decay, mask=decayed),
        _can_skip(optax.scale_by_learning_rate(schedule(cfg, steps))),
    )


def clip(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients of a larger global norm down to `max_norm`.

    `optax.clip_by_global_norm` with one factor, which the compiler folds into what reads the gradients; the
    quotients there are stored first.
    """

    def update(grads, state, params=None):
        del params
        scale = max_norm / jnp.maximum(optax.tree.norm(grads), max_norm)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam`, whose moments are written over the old ones.

    On CPU a barrier makes the update read the new moments. Without it the compiler computes them once more
    for the update, from the old ones, all of which it copies first: half of the optimizer's memory traffic.
    Other compilers may write all three results in one pass, which a barrier would forbid.
    """
    like_optax = optax.scale_by_adam(b1, b2, eps, mu_dtype=jnp.float32)

    def update(grads, state, params=None, *, apply=True):
        del params

        def moment(old, new):
            return jnp.where(apply, new, old)

        mu = jax.tree.map(lambda m, g: moment(m, b1 * m + (1 - b1) * g.astype(m.dtype)), state.mu, grads)
        nu = jax.tree.map(lambda v, g: moment(v, b2 * v + (1 - b2) * g.astype(v.dtype) ** 2), state.nu, grads)
        if jax.default_backend() == "cpu":
            mu, nu = jax.lax.optimization_barrier((mu, nu))
        count = state.count + jnp.asarray(apply, state.count.dtype)
        m_unit, v_unit = (1 - decay ** jnp.maximum(count, 1) for decay in (b1, b2))  # weights sum to 1
        updates = jax.tree.map(lambda m, v: m / m_unit / (jnp.sqrt(v / v_unit) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(like_optax.init, update)


def _can_skip(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    def update(grads, state, params=None, *, apply=True):
        updates, new = inner.update(grads, state, params)
        return updates, jax.tree.map(lambda a, b: jnp.where(apply, a, b), new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)
