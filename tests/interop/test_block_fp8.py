"""8-bit floats with a scale per block by hand, and part by part."""

import ml_dtypes
import numpy as np
import pytest

from moejax.errors import CheckpointError
from moejax.interop import block_fp8
from moejax.interop.source import TensorInfo
from tests.interop.test_mxfp4 import Held

FP8 = ml_dtypes.float8_e4m3fn


def random(rows, columns):
    rng = np.random.default_rng(0)
    scales = rng.random((-(-rows // 128), -(-columns // 128)), np.float32)
    matrix = rng.standard_normal((rows, columns)).astype(FP8)
    return Held(w=matrix, w_scale_inv=scales, other=np.arange(6.0))


def test_two_blocks_by_hand():
    """448 is the largest value; column 127 is the last one of the first block."""
    matrix = np.full((1, 130), 1.5, FP8)
    matrix[0, :2] = 448, -0.25
    source = block_fp8.unpacked(Held(w=matrix, w_scale_inv=np.array([[2.0, 10.0]], np.float32)))
    assert set(source.names()) == {"w"}
    assert source.info("w") == TensorInfo((1, 130), np.dtype(np.float32), "memory")
    np.testing.assert_array_equal(source.read("w"), [[896, -0.5, *[3.0] * 126, 15, 15]])


def test_parts_are_those_of_the_whole():
    """Within blocks and over their ends; numbers take a dim away; the rest is as it was."""
    held = random(300, 140)
    source = block_fp8.unpacked(held)
    whole = source.read("w")
    scales = np.kron(held.arrays["w_scale_inv"], np.ones((128, 128), np.float32))[:300, :140]
    np.testing.assert_array_equal(whole, held.arrays["w"].astype(np.float32) * scales)
    for index in (
        (slice(100, 260), slice(127, 129)),
        (slice(5, 6),),
        (130, slice(0, 140)),
        (299, 139),
        (slice(7, 7), slice(0, 3)),
    ):
        np.testing.assert_array_equal(source.read("w", index), whole[index], strict=True)
    np.testing.assert_array_equal(source.read("other", (slice(2, 4),)), [2.0, 3.0])


def test_what_is_not_packed_stays_as_it_is():
    source = Held(w=np.ones(3))
    assert block_fp8.unpacked(source) is source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.ones((300, 140), np.float32)}, r"'w' of memory is float32\[300, 140\], but its scales"),
        ({"w_scale_inv": np.ones((3, 1), np.float32)}, r"its scales are float32\[3, 1\]; expected"),
        ({"w": np.ones(300, FP8), "w_scale_inv": np.ones(3, np.float32)}, "expected a matrix"),
        ({"v_scale_inv": np.ones((3, 2), np.float32)}, "'v_scale_inv' of memory has no 'v' beside it"),
    ],
)
def test_a_matrix_without_its_scales_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        block_fp8.unpacked(Held(**random(300, 140).arrays | change))
