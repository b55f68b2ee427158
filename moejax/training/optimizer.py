"""AdamW, schedules and clipping from optax, as one transformation."""

import jax.numpy as jnp
import optax

from moejax import specs as sp
from moejax.config import OptimConfig


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


def make(cfg: OptimConfig, steps: int, specs) -> optax.GradientTransformation:
    """Clip, Adam, decoupled weight decay on matrices, schedule."""
    decayed = sp.tree_map(lambda spec: sum(dim != "layer" for dim in spec.dims) >= cfg.decay_min_rank, specs)
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps, mu_dtype=jnp.float32),
        optax.add_decayed_weights(cfg.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule(cfg, steps)),
    )
