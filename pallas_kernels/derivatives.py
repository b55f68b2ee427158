"""Own derivatives, to any order, for ops whose passes are kernels and loops that jax cannot differentiate."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def differentiable(forward: Callable, backward: Callable, meaning: Callable) -> Callable:
    """An op `op(floats, others, how) -> out` with a backward pass of its own.

    Args:
      forward: (floats, others, how, keep) -> (out, *kept); kept is what its backward pass can use, nothing
        where `keep` is False.
      backward: (d_out, floats, others, kept, how) -> gradients of `floats`.
      meaning: (floats, others, how) -> out, the same function out of ops that have derivatives. Second and
        higher derivatives are those of its gradient.

    Under `lax.scan` an op can be differentiated once: there jax mixes up what a second derivative needs.

    Returns:
      The op; `floats` and `others` are tuples of arrays, of which `others` have no gradient, and `how` is
      static and hashable.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def op(floats, others, how):
        return forward(floats, others, how, False)[0]

    # What is kept is a constant to whoever differentiates the forward pass: `slopes` sees to its part.
    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def keeping(floats, others, how):
        return forward(floats, others, how, True)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
    def slopes(d_out, floats, others, kept, how):
        return backward(d_out, floats, others, kept, how)

    def op_forward(floats, others, how):
        out, *kept = keeping(floats, others, how)
        return out, (floats, others, tuple(kept))

    def keeping_forward(floats, others, how):
        out, *kept = keeping(floats, others, how)
        return (out, *kept), (floats, others, tuple(kept))

    def op_backward(how, saved, d_out):
        return slopes(d_out, *saved, how), None

    def slopes_forward(d_out, floats, others, kept, how):
        return slopes(d_out, floats, others, kept, how), (d_out, floats, others, kept)

    def slopes_backward(how, saved, cotangents):
        d_out, floats, others, kept = saved
        gradient = lambda d_out, floats: jax.vjp(lambda *x: meaning(x, others, how), *floats)[1](d_out)
        d_d_out, d_floats = jax.vjp(gradient, d_out, floats)[1](cotangents)
        return d_d_out, d_floats, None, jax.tree.map(jnp.zeros_like, kept)

    op.defvjp(op_forward, op_backward)
    keeping.defvjp(keeping_forward, lambda how, saved, d_outputs: op_backward(how, saved, d_outputs[0]))
    slopes.defvjp(slopes_forward, slopes_backward)
    return op
