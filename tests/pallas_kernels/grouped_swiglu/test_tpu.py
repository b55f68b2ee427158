"""The TPU kernel: blocks that reach past the arrays, two cores at once, tiles by the model."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter  # knows of races
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import grouped_swiglu
from pallas_kernels.errors import NotServedError
from pallas_kernels.grouped_matmul import tpu_tiles
from pallas_kernels.grouped_matmul.tpu_tiles import Problem, Tiles
from pallas_kernels.grouped_swiglu import reference, tpu
from pallas_kernels.grouped_swiglu.tpu_tiles import SWIGLU, pair
from pallas_kernels.tpu_chips import Chip
from tests.pallas_kernels import interpreters

CHIP = Chip(flops=200e12, bandwidth=800e9, vmem=64 * 2**20, mxu=128)


def test_no_width_is_a_multiple_of_its_tile(monkeypatch):
    """The last blocks reach past the arrays, where the interpreter has NaN; so have the rows of nobody."""
    monkeypatch.setattr(tpu_tiles, "choose", lambda *_: Tiles(16, 128, 128))
    rng = np.random.default_rng(0)
    draw = lambda *dims: jnp.asarray(rng.standard_normal(dims) / 10, jnp.float32)
    rows_RD, gate_GDF, up_GDF = draw(41, 200), draw(3, 200, 150), draw(3, 200, 150)
    end_G = jnp.array([10, 10, 33])
    bounds = jnp.array([0, 10, 10]), end_G
    operands = jnp.where(jnp.arange(41)[:, None] < 33, rows_RD, jnp.nan), None, gate_GDF, up_GDF, *bounds
    static = {"activation": "silu", "keep": True}
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, random_seed=0)
    with interpreters.pallas_calls(params):
        actual = tpu.forward(*operands, **static)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(actual, reference.forward(*operands, **static), strict=True):
        close(got, wanted)
    assert not interpreter.races.races_found


def test_two_products_are_one_of_twice_the_width_with_half_the_result():
    of = Problem(M=1024, K=512, N=1024, G=2, operand_bytes=2, result_bytes=2)
    wide, tiles = pair(of, Tiles(256, 512, 512))
    assert (wide.N, wide.result_bytes, tiles) == (2048, 1, Tiles(256, 512, 1024))
    arithmetic = 5 * 2 * 2 * 256 * 512 * 1024 / 200e12
    assert SWIGLU.seconds(of, Tiles(256, 512, 512), CHIP) == pytest.approx(arithmetic + 10 * 0.35e-6)
    blocks = 2 * (2 * 256 * 512 + 2 * 2 * 512 * 512 + 2 * 256 * 512)  # in twice: rows, matrices, one result
    assert SWIGLU.vmem(of, Tiles(256, 512, 512)) == int(1.25 * (blocks + 2 * 4 * 256 * 512)) + 2**20


def test_what_a_tpu_lacks():
    operands = jnp.ones((4, 2), jnp.float16), *[jnp.ones((1, 2, 3), jnp.float16)] * 2, jnp.array([4])
    with pytest.raises(NotServedError, match="bfloat16 and float32, not float16"):
        grouped_swiglu(*operands, implementation="tpu")
