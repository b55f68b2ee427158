"""The TPU kernels: no step overtakes another, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter  # knows of races
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import permute
from pallas_kernels.errors import NotServedError
from pallas_kernels.permute import reference, tpu
from tests.pallas_kernels import interpreters


@pytest.fixture
def two_cores(monkeypatch):
    """An interpreter in which two cores share the steps, five of them in random order."""
    monkeypatch.setattr(tpu, "HEIGHTS", (8,))
    monkeypatch.setattr(tpu, "LANES", 8)
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, random_seed=0)
    with interpreters.pallas_calls(params):
        yield


@pytest.mark.parametrize("function", ["gather", "combine", "spread"])
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.nightly)])
def test_steps_of_two_cores(two_cores, function, dtype):
    """Five steps are six for two cores: the last one is repeated."""
    rng = np.random.default_rng(0)
    draw = lambda *dims: jnp.asarray(rng.standard_normal(dims), dtype)
    home_NK, source_R = rng.permutation(37)[:14].reshape(7, 2), rng.integers(0, 7, 37)
    source_R[home_NK] = np.arange(7)[:, None]
    operands = {
        "gather": (draw(7, 16), source_R),
        "combine": (draw(20, 16), rng.integers(0, 20, (37, 2)), rng.choice([0.0, 2.0, -1.5], (37, 2))),
        "spread": (draw(7, 16), draw(37, 16), source_R, rng.standard_normal(37), home_NK),
    }[function]
    operands = [x if x.dtype == dtype else jnp.asarray(x, "i4" if x.dtype == int else "f4") for x in operands]
    actual, expected = (getattr(module, function)(*operands) for module in (tpu, reference))
    rounding = 2 * float(jnp.finfo(dtype).eps)
    close = lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=rounding, atol=1e-5)
    jax.tree.map(close, actual, expected)
    assert not interpreter.races.races_found


def test_words_and_back():
    x_ND = jnp.array([[1.5, -2.0, jnp.inf, 3.0]], jnp.bfloat16)
    assert tpu._packed(x_ND).tolist() == [[0x7F803FC0, 0x4040C000]]
    np.testing.assert_array_equal(tpu._unpacked(tpu._packed(x_ND)), x_ND.astype(jnp.float32))


def test_what_a_tpu_lacks():
    slots = jnp.arange(4), jnp.arange(4).reshape(2, 2)
    with pytest.raises(NotServedError, match=r"bfloat16 and float32, not float16; .*'xla' can"):
        permute(jnp.ones((2, 256), jnp.float16), *slots, implementation="tpu")
    with pytest.raises(NotServedError, match="not multiples of 128 wide, of 300"):
        permute(jnp.ones((2, 300), jnp.bfloat16), *slots, implementation="tpu")
    many, wide = (jax.ShapeDtypeStruct((8, width), jnp.float32) for width in (256, 10**6))
    place = lambda num_rows: jax.ShapeDtypeStruct((num_rows,), jnp.int32)
    assert tpu.refusal("gather", many, place(2**18)) == "the places of 262144 rows do not fit in SMEM"
    assert tpu.refusal("gather", wide, place(8)) == "rows of 1000000 are too wide for VMEM"
    assert tpu.refusal("gather", many, place(2**17)) is None
