"""The meaning of the two permutations, a line each; every row of every slot is there at once."""

import jax
import jax.numpy as jnp

PLATFORM = None


def refusal(function, *operands, **static) -> None:
    """It serves everything."""


def gather(x_ND, source_R) -> jax.Array:
    """rows[r] = x[source[r]]."""
    return x_ND[source_R]


def combine(rows_RD, home_NK, gate_NK) -> jax.Array:
    """y[n] = sum_k gate[n, k] rows[home[n, k]]; where the gate is zero, nobody looks at the row."""
    weighted_NKD = weigh(gate_NK, rows_RD[home_NK].astype(gate_NK.dtype))
    return jnp.sum(weighted_NKD, axis=1).astype(rows_RD.dtype)


def spread(y_ND, rows_RD, source_R, gate_R, home_NK) -> tuple[jax.Array, jax.Array]:
    """What `combine` needs of its rows' gradient and of its gates'.

    Returns:
      (gate[r] y[source[r]], where the gate is zero it is zero; the row products y[n] . rows[home[n, k]]).
    """
    rows_NKD = rows_RD[home_NK].astype(gate_R.dtype)
    d_rows_RD = weigh(gate_R, y_ND[source_R].astype(gate_R.dtype))
    return d_rows_RD.astype(rows_RD.dtype), jnp.sum(rows_NKD * y_ND[:, None].astype(gate_R.dtype), axis=2)


def weigh(gate, rows):
    """Every row times its gate; what has the gate zero is zero, NaN too."""
    return jnp.where(gate[..., None] == 0, 0, gate[..., None] * rows)


def accumulator(x) -> jnp.dtype:
    """The type in which rows like `x` are summed."""
    return jnp.promote_types(x.dtype, jnp.float32)
