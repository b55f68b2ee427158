"""The objective and its gradient, the same for any number of micro-batches.

Every loss is a function of sums over tokens. With one micro-batch the gradient is taken directly. With
several, the sums of all of them come first; the slope of the objective in those sums then weighs each
micro-batch's own gradient: d objective / d theta = sum_i <slope, d sums_i / d theta>. Losses that are linear
in their sums have a slope that no forward pass can change, and the compiler removes the first pass for them;
for a global balance loss it stays, which is what the exact gradient costs.
"""

import jax
import jax.numpy as jnp

from moejax import sharding
from moejax.model.forward import forward
from moejax.model.stack import no_side
from moejax.seams import Side


def sides_of(m, losses, states):
    """What the losses' controllers add to routing, merged; two that add the same thing are summed."""
    sides = no_side(m)
    for loss, state in zip(losses, states, strict=True):
        own = loss.side(state)
        if own is not None:
            sides = jax.tree.map(_merge, sides, own, is_leaf=lambda x: isinstance(x, Side))
    return sides


def _merge(a: Side, b: Side) -> Side:
    def add(x, y):
        return y if x is None else x if y is None else x + y

    return Side(add(a.bias_BE, b.bias_BE), add(a.prefer_BE, b.prefer_BE))


def stats_of(params, m, losses, sides, batch, key):
    """Per loss: its sums over the tokens of `batch`."""

    def probe(out, batch):
        return tuple(loss.probe(out, batch) for loss in losses)

    output = forward(params, m, batch, sides=sides, key=key, probe=probe)
    own = [tuple(tuple(seen[i] for seen in group) for group in output.probes) for i in range(len(losses))]
    return tuple(loss.stats(params, m, own[i], output, batch) for i, loss in enumerate(losses))


def total_of(losses, states, stats):
    """(objective, (new states, metrics)) from the sums over the whole batch."""
    objective, new_states, metrics = jnp.zeros(()), [], {}
    for loss, state, own in zip(losses, states, stats, strict=True):
        value, state, own_metrics = loss.total(own, state)
        objective = objective + loss.weight * value
        new_states.append(state)
        metrics.update(own_metrics)
    return objective, (tuple(new_states), metrics)


def value_and_grad(params, m, losses, states, batch, key, accumulate: int = 1):
    """((objective, (new loss states, metrics)), gradient) of one optimiser step."""
    sides = sides_of(m, losses, states)
    if accumulate == 1:

        def objective(params):
            return total_of(losses, states, stats_of(params, m, losses, sides, batch, key))

        return jax.value_and_grad(objective, has_aux=True)(params)

    def stats(params, micro):
        batch, index = micro
        own_key = None if key is None else jax.random.fold_in(key, index)
        return stats_of(params, m, losses, sides, batch, own_key)

    micros = (split(batch, accumulate), jnp.arange(accumulate))
    sums = _scan_sum(lambda micro: stats(params, micro), micros)
    slope = jax.grad(lambda sums: total_of(losses, states, sums)[0])(sums)

    def weighted(micro):
        own, pull = jax.vjp(lambda params: stats(params, micro), params)
        return own, pull(slope)[0]

    sums, grads = _scan_sum(weighted, micros)
    return total_of(losses, states, sums), grads


def split(batch, num: int):
    """Micro-batches along a new leading dim; row b goes to number b mod num, so split rows stay in place."""

    def one(x):
        rows = sharding.out("B")
        where = None if rows is None else jax.sharding.PartitionSpec(*rows, *(None,) * x.ndim)
        strided = jnp.reshape(x, (len(x) // num, num, *x.shape[1:]), out_sharding=where)
        return jnp.swapaxes(strided, 0, 1)

    return jax.tree.map(one, batch)


def _scan_sum(f, xs):
    """Sum of f over the leading dim of xs, in order."""
    shape = jax.eval_shape(f, jax.tree.map(lambda x: x[0], xs))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, out_sharding=_where(s)), shape)
    total, _ = jax.lax.scan(lambda acc, x: (jax.tree.map(jnp.add, acc, f(x)), None), zeros, xs)
    return total


def _where(shape):
    return None if sharding.out("B") is None else shape.sharding.spec
