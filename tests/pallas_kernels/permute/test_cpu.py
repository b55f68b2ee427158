"""The plain XLA form keeps no row of every slot and scatters nothing."""

import jax
import jax.numpy as jnp

from pallas_kernels import permute, unpermute

N, K, D = 256, 8, 64
ROWS_BYTES = 4 * N * K * D


def compiled(function):
    floats = (N, D), (N * K, D), (N, K)
    operands = [jax.ShapeDtypeStruct(dims, jnp.float32) for dims in floats]
    slots = [jax.ShapeDtypeStruct(dims, jnp.int32) for dims in ((N * K,), (N, K))]
    program = jax.jit(function).lower(*operands, *slots).compile()
    assert " scatter(" not in program.as_text()
    return program.memory_analysis().temp_size_in_bytes


def back(x_ND, rows_RD, gate_NK, order_R, home_NK):
    y_ND, pull = jax.vjp(lambda *floats: unpermute(floats[0], order_R, home_NK, floats[1]), rows_RD, gate_NK)
    return y_ND, pull(x_ND)


def there(x_ND, rows_RD, gate_NK, order_R, home_NK):
    rows_RD, pull = jax.vjp(lambda x_ND: permute(x_ND, order_R, home_NK), x_ND)
    return rows_RD, pull(rows_RD)


def test_the_sum_over_slots_keeps_nothing_of_them():
    combine = lambda x, rows_RD, gate_NK, order_R, home_NK: unpermute(rows_RD, order_R, home_NK, gate_NK)
    assert compiled(combine) < ROWS_BYTES / 50  # indices and gates


def test_gradients_of_gates_keep_the_rows_of_one_slot():
    assert compiled(back) < 1.5 * ROWS_BYTES / K


def test_rows_are_gathered_and_summed_without_a_copy():
    assert compiled(there) < ROWS_BYTES / 50
