"""One optimiser step, and one evaluation step, as pure functions."""

import jax
import jax.numpy as jnp
import optax

from moejax.training import objective
from moejax.training.state import TrainState


def train_step(state: TrainState, batch, key, *, m, losses, optimizer, accumulate: int = 1):
    """(new state, metrics). An update that is not finite is never applied; it is counted instead."""
    key = jax.random.fold_in(key, state.step)
    (loss, (loss_state, metrics)), grads = objective.value_and_grad(
        state.params, m, losses, state.loss_state, batch, key, accumulate
    )
    grad_norm = optax.global_norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def keep(new, old):
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    new = TrainState(
        step=state.step + 1,
        params=keep(params, state.params),
        opt_state=keep(opt_state, state.opt_state),
        loss_state=keep(loss_state, state.loss_state),
        nonfinite=jnp.where(finite, 0, state.nonfinite + 1),
    )
    metrics = {"train/loss": loss, "train/grad_norm": grad_norm, "health/nonfinite": new.nonfinite, **metrics}
    return new, metrics


def eval_step(params, loss_state, batch, *, m, losses):
    """Per loss: its sums over `batch`, without noise; add them up over batches, then `objective.total_of`."""
    return objective.stats_of(params, m, losses, objective.sides_of(m, losses, loss_state), batch, None)
