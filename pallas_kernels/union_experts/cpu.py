"""The union of experts out of plain XLA operations, made for CPU and correct everywhere.

A loop goes over the experts of the union, with a trip count that is known only when it runs; in each step all
tokens meet one expert. Floor: every weight of the union is read once, 2 or 3 D F numbers per expert, and
4 or 6 N D F FLOPs are done with them.
"""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.union_experts.reference import accumulator, union_of, weighted
from pallas_kernels.varying import vary, varying_axes

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def apply(x_ND, weight_NE, up_EDF, down_EFD, *gates, activation) -> jax.Array:
    """See `reference.apply`."""
    accum, (expert_U, count) = accumulator(x_ND), union_of(weight_NE)

    def add_expert(carry):
        u, y_ND = carry
        expert = expert_U[u]
        part_ND = one_expert(x_ND, weight_NE, expert, (up_EDF, *gates), down_EFD, activation)
        return u + 1, y_ND + part_ND

    start = (jnp.zeros_like(count), vary(jnp.zeros(x_ND.shape, accum), varying_axes(x_ND)))
    return lax.while_loop(lambda carry: carry[0] < count, add_expert, start)[1].astype(x_ND.dtype)


def one_expert(x_ND, weight_NE, expert, wide, down_EFD, activation: str) -> jax.Array:
    """What one expert gives all tokens, times its weight."""
    of = lambda x, axis=0: lax.dynamic_index_in_dim(x, expert, axis, keepdims=False)
    dot = lambda left, right: jnp.matmul(left, right, preferred_element_type=accumulator(x_ND))
    weight_N1 = of(weight_NE, 1)[:, None]
    h_NF = weighted(*(dot(x_ND, of(matrix)) for matrix in wide), weight=weight_N1, activation=activation)
    return jnp.where(weight_N1 != 0, dot(h_NF.astype(x_ND.dtype), of(down_EFD)), 0)
