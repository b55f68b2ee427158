"""A step of least squares, small enough to price by hand, on one device and on eight."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moejax.analysis.dry_run import dry_run

N, D, V = 32, 16, 24
PARAMS = {"w": jax.ShapeDtypeStruct((D, V), jnp.float32), "b": jax.ShapeDtypeStruct((V,), jnp.bfloat16)}


def step(params, x_ND):
    def loss(params):
        return jnp.mean(jnp.square(x_ND @ params["w"] + params["b"].astype(jnp.float32)[None]))

    return jax.tree.map(lambda p, g: (p - 0.1 * g).astype(p.dtype), params, jax.grad(loss)(params))


def compiled(sharding=None):
    x_ND = jax.ShapeDtypeStruct((N, D), jnp.float32, sharding=sharding)
    return jax.jit(step, donate_argnums=0).lower(PARAMS, x_ND).compile()


def test_one_device():
    run = dry_run(compiled(), PARAMS, tokens_per_step=N, active_parameters=D * V)
    assert run.parameters == D * V + V
    assert run.parameter_bytes == 4 * D * V + 2 * V
    assert run.matmul_flops_per_token == 4 * D * V  # forward and weight gradient; x has none
    assert run.flops_per_token > run.matmul_flops_per_token
    assert run.peak_bytes >= run.parameter_bytes + 4 * N * D


def test_the_table_says_it_in_words():
    run = dry_run(compiled(), PARAMS, tokens_per_step=N, active_parameters=D * V)
    lines = dict(line.split("  ", 1) for line in run.table().splitlines())
    values = {name: value.strip() for name, value in lines.items()}
    assert values["parameters"] == "408 (1.55 KiB)"
    assert values["active per token"] == "384"
    assert values["FLOPs per token"].endswith("(matmuls: 4.00 per active parameter)")
    assert values["peak memory"].endswith("per device, 1 in use")


def test_sharding_the_batch_leaves_flops_per_token_and_shows_the_exchange():
    mesh = jax.make_mesh((8,), ("data",))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("data"))
        run = dry_run(compiled(rows), PARAMS, tokens_per_step=N, active_parameters=D * V)
    assert run.cost.devices == 8
    assert run.matmul_flops_per_token == 4 * D * V
    assert run.cost.collective_bytes["all-reduce"] >= 4 * D * V
    assert "all-reduce per step" in run.table()


@pytest.mark.parametrize("trips", [1, 9])
def test_loops_of_unknown_length_are_shown(trips):
    def decode(x_DD, n):
        return jax.lax.fori_loop(0, n, lambda _, y_DD: y_DD @ x_DD, x_DD)

    x_DD = jax.ShapeDtypeStruct((D, D), jnp.float32)
    program = jax.jit(decode).lower(x_DD, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    run = dry_run(program, x_DD, tokens_per_step=D, active_parameters=D * D, dynamic_trips=trips)
    assert run.flops_per_token == trips * 2 * D * D
    assert "jit(decode)/while" in run.table()
