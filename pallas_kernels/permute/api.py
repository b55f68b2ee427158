"""Rows of tokens to experts and back: what a mixture of experts does around its products.

Letters: N tokens, K slots per token, R rows, D width. Slot k of token n has the flat number n K + k. Both
permutations are known, `order_R` the slot of every row and `home_NK` the row of every slot, so that nothing
is ever scattered: forward and backward passes are gathers.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import implementations
from pallas_kernels.permute import cpu, reference, tpu
from pallas_kernels.permute.reference import accumulator, weigh
from pallas_kernels.varying import vary, vary_alike, varying_axes

IMPLEMENTATIONS = {"tpu": tpu, "xla": cpu, "reference": reference}


def permute(x_ND, order_R, home_NK, *, implementation: str | None = None) -> jax.Array:
    """Give every row its token: `rows[r] = x[order[r] // K]`.

    The gradient of a token is the sum over the rows at its homes; a home past the end is nowhere and adds
    nothing, whatever the gradients of other rows hold (NaN too).

    Args:
      x_ND: tokens.
      order_R: int, flat slot of every row. A row whose slot is past the end holds any token: no slot's home
        may be there.
      home_NK: int, row of every slot; past the end = nowhere.
      implementation: a key of `IMPLEMENTATIONS`; default: the best one of the platform.

    Returns:
      rows_RD.

    Raises:
      ValueError: shapes that do not fit, or an unknown implementation.
      NotServedError: the implementation that was asked for cannot serve these operands.
    """
    _check("x", x_ND, home_NK.shape[0], order_R, home_NK)
    return _permute(*vary_alike(x_ND, order_R, home_NK), implementation)


def unpermute(rows_RD, order_R, home_NK, gate_NK=None, *, implementation: str | None = None) -> jax.Array:
    """Sum every token's rows, each times its gate: `y[n] = sum_k gate[n, k] rows[home[n, k]]`.

    Sums in float32 (float64 rows: in float64). A home past the end is nowhere: it adds nothing, whatever is
    there or in its gate; its gate gets no gradient. Rows at no home and rows of gate 0 get none either.
    Arguments as for `permute`; without `gate_NK` all gates are 1.

    Returns:
      y_ND, of the type of the rows.

    Raises:
      ValueError: shapes that do not fit, or an unknown implementation.
      NotServedError: the implementation that was asked for cannot serve these operands.
    """
    _check("rows", rows_RD, order_R.shape[0], order_R, home_NK)
    if gate_NK is None:
        return _collect(*vary_alike(rows_RD, order_R, home_NK), implementation)
    if gate_NK.shape != home_NK.shape:
        raise ValueError(f"gate is {gate_NK.shape}, home is {home_NK.shape}; expected one gate per slot")
    return _unpermute(*vary_alike(rows_RD, order_R, home_NK, gate_NK), implementation)


def _check(name: str, x, length: int, order_R, home_NK) -> None:
    if x.ndim != 2 or order_R.ndim != 1 or home_NK.ndim != 2 or x.shape[0] != length:
        raise ValueError(
            f"{name} is {x.shape}, order is {order_R.shape}, home is {home_NK.shape}; expected "
            f"{'[N, D]' if name == 'x' else '[R, D]'}, [R] and [N, K]"
        )


# Each is the derivative of another one, so second and higher derivatives come by themselves.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _permute(x_ND, order_R, home_NK, implementation):
    (N, K), (R,), D = home_NK.shape, order_R.shape, x_ND.shape[1]
    if 0 in (N, K, R, D):
        return _zeros((R, D), x_ND)
    source_R = jnp.minimum(order_R // K, N - 1)
    return implementations.run(IMPLEMENTATIONS, "gather", implementation, (x_ND, source_R))


def _permute_forward(x_ND, order_R, home_NK, implementation):
    return _permute(x_ND, order_R, home_NK, implementation), (order_R, home_NK)


def _permute_backward(implementation, saved, d_rows_RD):
    return _collect(d_rows_RD, *saved, implementation), None, None


_permute.defvjp(_permute_forward, _permute_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _collect(rows_RD, order_R, home_NK, implementation):
    """The sum with all gates 1."""
    return _sum(rows_RD, home_NK, jnp.ones(home_NK.shape, accumulator(rows_RD)), implementation)


def _collect_forward(rows_RD, order_R, home_NK, implementation):
    return _collect(rows_RD, order_R, home_NK, implementation), (order_R, home_NK)


def _collect_backward(implementation, saved, d_y_ND):
    order_R, home_NK = saved
    is_home_R = _of_rows(home_NK < len(order_R), order_R)
    return jnp.where(is_home_R[:, None], _permute(d_y_ND, *saved, implementation), 0), None, None


_collect.defvjp(_collect_forward, _collect_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _unpermute(rows_RD, order_R, home_NK, gate_NK, implementation):
    return _sum(rows_RD, home_NK, gate_NK.astype(accumulator(rows_RD)), implementation)


def _unpermute_forward(rows_RD, order_R, home_NK, gate_NK, implementation):
    saved = rows_RD, order_R, home_NK, gate_NK
    return _unpermute(*saved, implementation), saved


def _unpermute_backward(implementation, saved, d_y_ND):
    rows_RD, order_R, home_NK, gate_NK = saved
    d_rows_RD, d_gate_NK = _slopes(d_y_ND, rows_RD, order_R, home_NK, gate_NK, implementation)
    return d_rows_RD, None, None, d_gate_NK.astype(gate_NK.dtype)


_unpermute.defvjp(_unpermute_forward, _unpermute_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _slopes(d_y_ND, rows_RD, order_R, home_NK, gate_NK, implementation):
    """Gradients of `unpermute` in its rows and its gates."""
    (R, D), K = rows_RD.shape, home_NK.shape[1]
    accum = accumulator(rows_RD)
    if 0 in (R, D, *home_NK.shape):
        return _zeros((R, D), rows_RD), vary(jnp.zeros(home_NK.shape, accum), varying_axes(rows_RD))
    there_NK = home_NK < R
    gate_R = _of_rows(jnp.where(there_NK, gate_NK, 0).astype(accum), order_R)
    source_R = jnp.minimum(order_R // K, len(home_NK) - 1)
    operands = d_y_ND, rows_RD, source_R, gate_R, jnp.minimum(home_NK, R - 1)
    d_rows_RD, product_NK = implementations.run(IMPLEMENTATIONS, "spread", implementation, operands)
    return d_rows_RD, jnp.where(there_NK, product_NK, 0)


def _slopes_forward(d_y_ND, rows_RD, order_R, home_NK, gate_NK, implementation):
    saved = d_y_ND, rows_RD, order_R, home_NK, gate_NK
    return _slopes(*saved, implementation), saved


def _slopes_backward(implementation, saved, cotangents):
    d_y_ND, rows_RD, order_R, home_NK, gate_NK = saved

    def slopes(d_y_ND, rows_RD, gate_NK):
        """The same out of what can be differentiated."""
        there_NK = home_NK < len(rows_RD)
        gate_R = _of_rows(jnp.where(there_NK, gate_NK, 0).astype(accumulator(rows_RD)), order_R)
        y_RD = _permute(d_y_ND, order_R, home_NK, implementation).astype(gate_R.dtype)
        product_R = jnp.sum(rows_RD * y_RD, axis=1)
        product_NK = product_R.at[home_NK].get(mode="fill", fill_value=0)
        return weigh(gate_R, y_RD).astype(rows_RD.dtype), product_NK

    pull = jax.vjp(slopes, d_y_ND, rows_RD, gate_NK)[1]
    d_d_y_ND, d_rows_RD, d_gate_NK = pull(cotangents)
    return d_d_y_ND, d_rows_RD, None, None, d_gate_NK


_slopes.defvjp(_slopes_forward, _slopes_backward)


def _sum(rows_RD, home_NK, gate_NK, implementation):
    (R, D), (N, _) = rows_RD.shape, home_NK.shape
    if 0 in (R, D, *home_NK.shape):
        return _zeros((N, D), rows_RD)
    operands = rows_RD, jnp.minimum(home_NK, R - 1), jnp.where(home_NK < R, gate_NK, 0)
    return implementations.run(IMPLEMENTATIONS, "combine", implementation, operands)


def _of_rows(x_NK, order_R):
    """What the slot of every row has; zero for a row of none."""
    return x_NK.reshape(-1).at[order_R].get(mode="fill", fill_value=0)


def _zeros(shape, x):
    return vary(jnp.zeros(shape, x.dtype), varying_axes(x))
