"""Activations and networks by hand, and experts one by one against all together."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.ops.experts import Parts, bank_specs, check_activation, composed_experts, gated, gated_experts
from tests.contracts import oracles, tiny

D, F, E = 4, 6, 3
SIZES = np.array([2, 0, 3], np.int32)  # of 7 rows: two are in no group


def drawn(parts):
    rng = np.random.default_rng(0)
    specs = bank_specs(tiny.model(width=D), E, F, 1.0, parts)
    return {name: rng.standard_normal(spec.shape) for name, spec in specs.items()}


def rows():
    rows_RD = np.random.default_rng(1).standard_normal((7, D))
    return np.where(np.arange(7)[:, None] < 5, rows_RD, np.nan)


def test_clamped_swiglu_by_hand():
    """gate 9 counts as 7, up 10 as 7 and -10 as -7; a very negative gate stays what it is."""
    gate, up = np.array([1.0, 9.0, 1.0, -20.0]), np.array([2.0, 10.0, -10.0, 0.5])
    low, high = np.array([1.0, 7.0, 1.0, -20.0]), np.array([2.0, 7.0, -7.0, 0.5])
    with jax.enable_x64(True):
        got = gated(gate, up, "clamped_swiglu")
    np.testing.assert_allclose(got, (high + 1) * low / (1 + np.exp(-1.702 * low)), rtol=1e-12)


def test_two_gelus():
    x = np.linspace(-4, 4, 9)
    with jax.enable_x64(True):
        exact, with_tanh = (np.asarray(gated(x, np.ones(9), name)) for name in ("gelu_exact", "gelu"))
    erf = np.array([math.erf(value / math.sqrt(2)) for value in x])
    np.testing.assert_allclose(exact, x / 2 * (1 + erf), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(
        with_tanh, x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize(
    "parts", [Parts(), Parts(linear_gate=True), Parts(bias=True), Parts(bias=True, linear_gate=True)]
)
def test_every_row_meets_its_own_expert(parts):
    """And its bias; rows past the last group are zero, whatever they hold."""
    p, rows_RD = drawn(parts), rows()
    assert {name for name in p if name.endswith("bias")} == {
        f"{name}_bias" for name in parts.inward if parts.bias
    }
    with jax.enable_x64(True):
        got_RD = composed_experts(p, jnp.asarray(rows_RD), SIZES)
    own = lambda e: {name: w[e] for name, w in p.items()}
    want_RD = [oracles.glu(own(e), x_D) for e, x_D in zip([0, 0, 2, 2, 2], rows_RD, strict=False)]
    np.testing.assert_allclose(got_RD[:5], want_RD, rtol=1e-12)
    np.testing.assert_array_equal(got_RD[5:], 0)


def test_composed_and_fused_are_one_function_in_value_and_gradient():
    """The bias of an expert without rows has gradient zero."""
    p, rows_RD = drawn(Parts()), np.nan_to_num(rows())
    biases = {f"{name}_bias": np.zeros((E, F)) for name in ("gate", "up")}

    def squares(experts):
        return jax.grad(lambda p, x: jnp.sum(jnp.square(experts(p, x, SIZES))), argnums=(0, 1))

    with jax.enable_x64(True):
        want = squares(gated_experts)(p, rows_RD)
        got = jax.tree.map(np.asarray, squares(composed_experts)(p | biases, rows_RD))
    zeros = {name: got[0].pop(name) for name in biases}
    tiny.close(got, want, 1e-12)
    for d_EF in zeros.values():
        assert (d_EF[1] == 0).all() and (d_EF[0] != 0).all()


def test_what_cannot_be_together_is_refused():
    with pytest.raises(UsageError, match=r"ffn.activation='swish' is not one of silu, .*clamped_swiglu"):
        check_activation("swish")
    with pytest.raises(UsageError, match=r"the matrices are gate, linear_gate, up; choose one of silu"):
        check_activation("clamped_swiglu", Parts(linear_gate=True))
