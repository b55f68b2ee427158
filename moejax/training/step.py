"""One optimiser step, and one evaluation step, as pure functions."""

import jax
import jax.numpy as jnp
import optax

from moejax.training import faults, objective
from moejax.training.state import TrainState

LOSS_MEMORY = 0.98  # of the running mean that a spike is measured against
BAD_GRADIENTS = "health/bad_gradients"  # per leaf of the parameters, whether its gradient is not finite


def train_step(
    state: TrainState, batch, key, *, m, losses, optimizer, accumulate: int = 1, spike_factor: float = 0.0
):
    """(new state, metrics). An update that is not finite, or follows a loss spike, is never applied."""
    key = jax.random.fold_in(key, state.step)
    (loss, (loss_state, metrics)), grads = objective.value_and_grad(
        state.params, m, losses, state.loss_state, batch, key, accumulate
    )
    grads = faults.break_gradient(state.step + 1, grads)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    apply = finite
    if spike_factor:
        mean = state.loss_mean / (1 - LOSS_MEMORY ** jnp.maximum(state.applied, 1))  # its weights sum to 1
        apply &= (state.applied == 0) | (loss <= spike_factor * mean)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, apply=apply)
    params = optax.apply_updates(state.params, updates)

    def keep(new, old):
        return jax.tree.map(lambda a, b: jnp.where(apply, a, b), new, old)

    loss_mean = LOSS_MEMORY * state.loss_mean + (1 - LOSS_MEMORY) * loss
    new = TrainState(
        step=state.step + 1,
        params=keep(params, state.params),
        opt_state=opt_state,
        loss_state=keep(loss_state, state.loss_state),
        applied=state.applied + apply,
        loss_mean=keep(loss_mean.astype(jnp.float32), state.loss_mean),
        skipped=jnp.where(apply, 0, state.skipped + 1),
    )
    health = {"health/skipped": new.skipped, BAD_GRADIENTS: _not_finite(grads)}
    metrics = health | metrics | _of_rules(opt_state)
    return new, {"train/loss": loss, "train/grad_norm": grad_norm, **metrics}


def _not_finite(grads):
    """bool per leaf. By its norm, which is computed anyway."""
    return jnp.stack([~jnp.isfinite(optax.tree.norm(leaf)) for leaf in jax.tree.leaves(grads)])


def _of_rules(opt_state):
    """What rules report, of the state after the update."""
    found = optax.tree.get_all_with_path(opt_state, "metrics")
    return {name: value for _, own in found for name, value in own.items()}


def eval_step(params, loss_state, batch, *, m, losses):
    """Per loss: its sums over `batch`, without noise; add them up over batches, then `objective.total_of`."""
    return objective.stats_of(params, m, losses, objective.sides_of(m, losses, loss_state), batch, None)
