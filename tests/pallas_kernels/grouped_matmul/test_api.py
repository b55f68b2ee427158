"""What the public functions refuse, and with which words."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_matmul, grouped_outer

LHS, RHS, SIZES = jnp.zeros((6, 4)), jnp.zeros((2, 4, 3)), jnp.array([1, 2])


def test_widths_that_differ():
    with pytest.raises(ValueError, match=r"lhs is \(6, 3\), rhs is \(2, 4, 3\); .* \[M, K\] and \[G, K, N\]"):
        grouped_matmul(LHS[:, :3], RHS, SIZES)
    with pytest.raises(ValueError, match=r"expected \[M, K\] and \[G, N, K\]"):
        grouped_matmul(LHS, RHS, SIZES, transpose_rhs=True)
    with pytest.raises(ValueError, match=r"lhs is \(6, 4\), rhs is \(5, 4\)"):
        grouped_outer(LHS, LHS[1:], SIZES)


def test_groups_that_do_not_exist():
    with pytest.raises(ValueError, match=r"group_sizes is \(2,\), but groups 1 to 2 are wanted"):
        grouped_matmul(LHS, RHS, SIZES, group_offset=1)
    with pytest.raises(ValueError, match=r"groups 0 to 2 are wanted"):
        grouped_outer(LHS, LHS, SIZES, num_groups=3)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="'dense' is not one of tpu, hopper, triton, xla_tiles"):
        grouped_matmul(LHS, RHS, SIZES, implementation="dense")


def test_float32_operands_where_float64_is_enabled():
    """What is traced for other platforms too must not mind that Python numbers are wide."""
    with jax.enable_x64(True):
        out_MN = grouped_matmul(LHS.astype(jnp.float32) + 1, RHS.astype(jnp.float32) + 1, SIZES)
    assert out_MN.dtype == jnp.float32
    assert out_MN.tolist() == [[4.0] * 3] * 3 + [[0.0] * 3] * 3
