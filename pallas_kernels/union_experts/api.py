"""A few tokens times the union of the experts that any of them activates: decoding, drafts and their check.

BlockFFN: Mixture-of-Experts with Chunk-Level Activation Sparsity (Song et al. 2025, arXiv 2507.08771)
verifies n draft tokens by reading |union| * 2 * D * F weights instead of E * 2 * D * F.

Letters: N tokens, D model width, E experts, F expert width, K slots of a token.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import implementations
from pallas_kernels.errors import NotServedError
from pallas_kernels.grouped_swiglu.activations import ACTIVATIONS
from pallas_kernels.union_experts import cpu, reference, tpu, triton
from pallas_kernels.varying import vary_alike

IMPLEMENTATIONS = {"tpu": tpu, "triton": triton, "xla_loop": cpu, "reference": reference}


def union_experts(
    x_ND,
    weight_NE,
    up_EDF,
    down_EFD,
    *,
    gate_EDF=None,
    activation: str = "silu",
    implementation: str | None = None,
) -> jax.Array:
    """Add up what the experts give each token: `y[n] = sum_e weight[n, e] * expert_e(x[n])`.

    An expert is `act(x up) down`, or `(act(x gate) * (x up)) down` with a gate. Only experts with a weight
    that is not zero, for at least one token, are read and computed, for all tokens at once: good for few
    tokens that choose alike. A token without any weight gives exact zeros, and nothing of an expert that a
    token does not want, NaN or not, reaches it.

    Experts are added in their order, so a token's result does not depend on the others, bit for bit, as
    long as there are equally many. There is no derivative; sums are float32, or float64 for float64
    operands.

    Args:
      x_ND: tokens, 1 to about 32.
      weight_NE: what each expert counts for each token; zero: not at all. See `expert_weights`.
      up_EDF: matrices of the experts.
      down_EFD: likewise.
      gate_EDF: likewise, of experts with a gate.
      activation: a key of `ACTIVATIONS`.
      implementation: a key of `IMPLEMENTATIONS`; default: the best one of the platform.

    Returns:
      y_ND, of x's type.

    Raises:
      ValueError: shapes that do not fit, an unknown activation or implementation.
      NotServedError: the implementation that was asked for cannot serve these operands, or a derivative
        is wanted.
    """
    gates = () if gate_EDF is None else (gate_EDF,)
    _check(x_ND, weight_NE, up_EDF, down_EFD, gates)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}")
    operands = vary_alike(*map(jnp.asarray, (x_ND, weight_NE, up_EDF, down_EFD, *gates)))
    return _apply(_How(activation, implementation), *operands)


def expert_weights(expert_NK, gate_NK, num_experts: int) -> jax.Array:
    """weight_NE of what a router chose: the gates of an expert's slots; expert `num_experts` is nobody."""
    chosen_NKE = expert_NK[:, :, None] == jnp.arange(num_experts)[None, None, :]
    return jnp.sum(jnp.where(chosen_NKE, gate_NK[:, :, None], 0), axis=1)


class _How(NamedTuple):
    """What of a call is known when it is traced."""

    activation: str
    implementation: str | None


def _check(x_ND, weight_NE, up_EDF, down_EFD, gates) -> None:
    fits = [x.ndim for x in (x_ND, weight_NE, up_EDF, down_EFD)] == [2, 2, 3, 3]
    if fits:
        (N, D), (E, _, F) = x_ND.shape, up_EDF.shape
        fits = (weight_NE.shape, up_EDF.shape, down_EFD.shape) == ((N, E), (E, D, F), (E, F, D))
        fits = fits and all(gate.shape == (E, D, F) for gate in gates)
    if not fits:
        raise ValueError(
            f"x is {x_ND.shape}, weight is {weight_NE.shape}, up is {up_EDF.shape}, down is "
            f"{down_EFD.shape}, gate is {gates[0].shape if gates else None}; expected [N, D], [N, E], "
            "[E, D, F], [E, F, D] and [E, D, F] or None"
        )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apply(how: _How, x_ND, weight_NE, up_EDF, *others):
    if 0 in (*x_ND.shape, *up_EDF.shape):
        return jnp.zeros_like(x_ND)
    operands = (x_ND, weight_NE, up_EDF, *others)
    return implementations.run(
        IMPLEMENTATIONS, "apply", how.implementation, operands, activation=how.activation
    )


@_apply.defjvp
def _no_derivative(how, operands, tangents):
    raise NotServedError("union_experts has no derivative: it is for decoding; train with grouped_matmul")
