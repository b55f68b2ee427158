"""The counter against hand numbers, then against the same program written another way."""

import functools

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from moejax.analysis.flops import breakdown, count, table

B, D, L = 64, 128, 5
LAYER = 2 * B * D * D  # FLOPs of the matmul of `layer`
TANH = B * D


def compiled(f, *args):
    return jax.jit(f).lower(*args).compile()


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


X, WS = zeros(B, D), zeros(L, D, D)


def layer(h_BD, w_DD):
    with jax.named_scope("layer"), jax.named_scope("ffn"):
        return jnp.tanh(h_BD @ w_DD)


def scanned(h_BD, w_LDD):
    return jax.lax.scan(lambda h_BD, w_DD: (layer(h_BD, w_DD), None), h_BD, w_LDD)[0]


def unrolled(h_BD, w_LDD):
    return functools.reduce(layer, list(w_LDD), h_BD)


def gradient(f):
    return jax.grad(lambda h_BD, w_LDD: f(h_BD, w_LDD).sum(), argnums=(0, 1))


def test_one_matmul_by_hand():
    """x[2,3] @ w[3,4]: 4 * 2 outputs of 3 multiply-adds; 6 + 12 numbers in, 8 out, 4 bytes each."""
    cost = count(compiled(jnp.matmul, zeros(2, 3), zeros(3, 4)))
    assert cost.flops == cost.matmul_flops == 48
    assert cost.bytes == 4 * (6 + 12 + 8)
    assert cost.collective_bytes == {}
    assert cost.unknown_loops == ()
    assert cost.devices == 1


def test_text_counts_like_the_program_it_came_from():
    program = compiled(scanned, X, WS)
    assert count(program.as_text()).flops == count(program).flops
    assert count(program.as_text()).peak_memory is None
    assert count(program).peak_memory >= 4 * B * D


@given(b=st.integers(1, 3), m=st.integers(1, 40), k=st.integers(1, 40), n=st.integers(1, 40))
@pytest.mark.parametrize("equation", ["bmk,bkn->bmn", "bmk,bnk->bmn", "bkm,bkn->bnm", "mbk,kbn->mnb"])
def test_batched_matmul_is_2bmnk(equation, b, m, k, n):
    sizes = {"b": b, "m": m, "k": k, "n": n}
    args = [zeros(*(sizes[dim] for dim in term)) for term in equation.split("->")[0].split(",")]
    cost = count(compiled(functools.partial(jnp.einsum, equation), *args))
    matmul = 2 * b * m * n * k
    # XLA writes a product without a sum (k = 1), or one row by one column, as elementwise work.
    assert cost.matmul_flops in (matmul, 0)
    assert cost.matmul_flops == matmul or 1 in (m, n, k)


def test_scan_costs_what_the_unrolled_loop_costs():
    scan, unroll = count(compiled(scanned, X, WS)), count(compiled(unrolled, X, WS))
    assert scan.flops == unroll.flops == L * (LAYER + TANH)
    assert scan.matmul_flops == L * LAYER
    # On top the scan copies its initial carry once (a read and a write) and steps an integer counter.
    initial_carry = 2 * 4 * B * D
    assert 0 <= scan.bytes - unroll.bytes - initial_carry <= 50 * L


def test_nested_scan_multiplies_both_counts():
    def twice(h_BD, w_LDD):
        return jax.lax.scan(lambda h_BD, _: (scanned(h_BD, w_LDD), None), h_BD, None, length=3)[0]

    assert count(compiled(twice, X, WS)).flops == 3 * L * (LAYER + TANH)


def test_gradient_of_a_scan_is_three_forwards_of_matmuls():
    scan, unroll = (count(compiled(gradient(f), X, WS)) for f in (scanned, unrolled))
    assert scan.matmul_flops == unroll.matmul_flops == 3 * L * LAYER
    # Elementwise, the unrolled backward recomputes cheap factors inside fusions: up to 8 per tanh.
    assert max(scan.flops, unroll.flops) - 3 * L * LAYER <= 8 * 2 * L * TANH


def test_remat_adds_exactly_one_forward_of_a_layer():
    def rematted(h_BD, w_LDD):
        kept = jax.checkpoint(lambda h_BD, w_DD: layer(h_BD, w_DD) * 2.0)
        return jax.lax.scan(lambda h_BD, w_DD: (kept(h_BD, w_DD), None), h_BD, w_LDD)[0]

    cost = count(compiled(gradient(rematted), X, WS))
    assert cost.matmul_flops == 4 * L * LAYER


def test_a_conditional_costs_its_dearest_branch():
    branches = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x]
    which = jax.ShapeDtypeStruct((), jnp.int32)
    program = compiled(lambda i, x: jax.lax.switch(i, branches, x), which, zeros(32, 32))
    assert count(program).matmul_flops == 2 * 2 * 32**3


def test_a_loop_of_unknown_length_is_named_and_takes_the_given_count():
    def power(x_DD, n):
        return jax.lax.fori_loop(0, n, lambda _, y_DD: jnp.sin(y_DD @ x_DD), x_DD)

    program = compiled(power, zeros(32, 32), jax.ShapeDtypeStruct((), jnp.int32))
    once = 2 * 32**3 + 32**2
    assert count(program).flops == once
    assert count(program, dynamic_trips=7).flops == 7 * once
    assert count(program, dynamic_trips=lambda name: 3 if "while" in name else 0).flops == 3 * once
    (name,) = count(program, dynamic_trips=7).unknown_loops
    assert name == "jit(power)/while"


def test_a_known_loop_ignores_the_count_for_unknown_ones():
    assert count(compiled(scanned, X, WS), dynamic_trips=1000).flops == L * (LAYER + TANH)


def test_reading_one_layer_of_a_stack_costs_one_layer():
    def one(w_LDD, i):
        return jax.lax.dynamic_index_in_dim(w_LDD, i, keepdims=False) * 2.0

    cost = count(compiled(one, WS, jax.ShapeDtypeStruct((), jnp.int32)))
    assert cost.flops == D * D
    assert 2 * 4 * D * D <= cost.bytes <= 2 * 4 * D * D + 8


def test_updating_one_row_in_place_costs_one_row():
    def update(cache_SD, row_D, i):
        return jax.lax.dynamic_update_index_in_dim(cache_SD, row_D, i, 0)

    i = jax.ShapeDtypeStruct((), jnp.int32)
    program = jax.jit(update, donate_argnums=0).lower(zeros(1000, D), zeros(D), i).compile()
    assert 2 * 4 * D <= count(program).bytes <= 2 * 4 * D + 16


def test_collectives_by_kind():
    """Each of 8 devices holds 16 x 4 floats: 256 bytes."""
    mesh = jax.make_mesh((8,), ("expert",))
    spec = PartitionSpec("expert")

    def exchange(x_nd):
        axis = "expert"
        return (
            jax.lax.psum(x_nd, axis),
            jax.lax.all_gather(x_nd, axis, tiled=True),
            jax.lax.psum_scatter(x_nd, axis, tiled=True),
            jax.lax.all_to_all(x_nd, axis, 0, 0, tiled=True),
            jax.lax.ppermute(x_nd, axis, [(i, (i + 1) % 8) for i in range(8)]),
        )

    with jax.set_mesh(mesh):
        x_nd = jax.ShapeDtypeStruct((128, 4), jnp.float32, sharding=NamedSharding(mesh, spec))
        whole = jax.shard_map(exchange, in_specs=spec, out_specs=(PartitionSpec(), *[spec] * 4))
        cost = count(compiled(whole, x_nd))
    assert cost.devices == 8
    assert cost.collective_bytes == {
        "all-reduce": 256,
        "all-gather": 8 * 256,
        "reduce-scatter": 256,
        "all-to-all": 256,
        "collective-permute": 256,
    }


def test_collectives_in_a_loop_are_multiplied():
    mesh = jax.make_mesh((8,), ("data",))

    spec = PartitionSpec("data")

    def step(x_nd, _):
        return jax.lax.ppermute(jnp.sin(x_nd), "data", [(i, 7 - i) for i in range(8)]), None

    def steps(x_nd):
        return jax.lax.scan(step, x_nd, None, length=3)[0]

    with jax.set_mesh(mesh):
        x_nd = jax.ShapeDtypeStruct((128, 4), jnp.float32, sharding=NamedSharding(mesh, spec))
        cost = count(compiled(jax.shard_map(steps, in_specs=spec, out_specs=spec), x_nd))
    assert cost.collective_bytes == {"collective-permute": 3 * 256}


def test_a_sharded_program_counts_what_one_device_does():
    mesh = jax.make_mesh((8,), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        cost = count(compiled(layer, jax.ShapeDtypeStruct((B, D), jnp.float32, sharding=rows), zeros(D, D)))
    assert cost.flops * 8 == LAYER + TANH


def test_breakdown_sums_to_the_count_and_tells_scopes_and_phases_apart():
    program = compiled(gradient(scanned), X, WS)
    cost, rows = count(program), breakdown(program)
    assert sum(row.flops for row in rows) == cost.flops
    assert sum(row.bytes for row in rows) == cost.bytes
    matmuls = {(row.phase, row.scope): row.matmul_flops for row in rows if row.matmul_flops}
    assert matmuls == {("forward", "layer/ffn"): L * LAYER, ("backward", "layer/ffn"): 2 * L * LAYER}
    assert rows[0].phase == "backward"
    assert {row.scope for row in breakdown(program, depth=1)} == {"layer", ""}
    assert "backward layer/ffn" in table(rows)
