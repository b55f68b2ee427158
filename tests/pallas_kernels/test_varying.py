"""Arrays made to vary over manual mesh axes."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from pallas_kernels.varying import like, vary, varying_axes


def test_outside_of_shard_map_nothing_varies():
    x = jnp.ones(3)
    assert varying_axes(x) == frozenset()
    assert vary(x, frozenset()) is x


def test_a_replicated_array_joins_a_sharded_one_and_its_gradient_is_summed():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))

    def scale(w, x):
        assert varying_axes(w) == frozenset()
        w = vary(w, varying_axes(w, x))
        assert varying_axes(w) == {"data"}
        return w * x

    op = jax.shard_map(scale, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    gradient = jax.grad(lambda w: op(w, jnp.arange(4.0)).sum())(jnp.float32(2.0))
    assert gradient == 0 + 1 + 2 + 3


def test_a_result_varies_like_its_operand():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))

    def op(x, w):
        assert like(x, (2, 3), jnp.bfloat16).manual_axis_type.varying == {"data"}
        assert like(w, (2,), jnp.int32).manual_axis_type.varying == frozenset()
        return x

    jax.shard_map(op, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))(jnp.arange(4.0), jnp.ones(1))
    assert like(jnp.ones(1), (2, 3), jnp.bfloat16).shape == (2, 3)
