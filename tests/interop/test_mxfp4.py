"""Packed 4-bit floats by hand, against transformers, and part by part."""

import ml_dtypes
import numpy as np
import pytest

from moejax.errors import CheckpointError
from moejax.interop import mxfp4
from moejax.interop.source import TensorInfo
from tests.interop import parity


class Held:
    """A `TensorSource` of arrays."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def names(self):
        return self.arrays.keys()

    def info(self, name):
        return TensorInfo(self.arrays[name].shape, self.arrays[name].dtype, "memory")

    def read(self, name, index=()):
        return self.arrays[name][index].copy()


def random(*shape):
    """A packed tensor [..., O, I / 32, 16], its scales from tiny to huge."""
    rng = np.random.default_rng(0)
    return Held(
        w_blocks=rng.integers(0, 256, (*shape, 16), np.uint8),
        w_scales=rng.integers(1, 250, shape, np.uint8),
        other=np.arange(6.0),
    )


def test_a_group_by_hand():
    """Byte 0x2F is -6, then 1; the scale 128 doubles both."""
    blocks, scales = np.zeros((1, 1, 16), np.uint8), np.array([[128]], np.uint8)
    blocks[0, 0, 3] = 0x2F
    wanted = np.zeros(32)
    wanted[6:8] = -12.0, 2.0
    np.testing.assert_array_equal(mxfp4.decoded(blocks, scales), wanted[None])


def test_equals_transformers():
    torch, _ = parity.libraries()
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    source = random(3, 10, 2)
    there = convert_moe_packed_tensors(
        *(torch.from_numpy(source.arrays[f"w_{x}"]) for x in ("blocks", "scales"))
    )
    here = mxfp4.unpacked(source)
    assert set(here.names()) == {"w", "other"}
    assert here.info("w") == TensorInfo((3, 64, 10), np.dtype(ml_dtypes.bfloat16), "memory")
    np.testing.assert_array_equal(here.read("w").astype(np.float32), there.float().numpy())
    np.testing.assert_array_equal(here.read("other", (slice(2, 4),)), [2.0, 3.0])


def test_parts_are_those_of_the_whole():
    """Within groups and over their ends; numbers take a dim away."""
    source = mxfp4.unpacked(random(3, 10, 3))
    whole = source.read("w")
    for index in (
        (slice(1, 3), slice(31, 65), slice(2, 9)),
        (slice(0, 1), slice(40, 50)),
        (2, slice(64, 96), 4),
        (slice(2, 2),),
        (1,),
    ):
        np.testing.assert_array_equal(source.read("w", index), whole[index])


def test_what_is_not_packed_stays_as_it_is():
    source = Held(w=np.ones(3))
    assert mxfp4.unpacked(source) is source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w_scales": None}, "tensor 'w_blocks' of memory has no 'w_scales' beside it"),
        ({"w_scales": np.zeros((3, 9), np.uint8)}, r"uint8\[3, 10, 16\], but its scales are uint8\[3, 9\]"),
        ({"w_scales": np.zeros((3, 10), np.int8)}, r"scales are int8\[3, 10\]; expected bytes"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(change, message):
    arrays = random(3, 10).arrays | change
    with pytest.raises(CheckpointError, match=message):
        mxfp4.unpacked(Held(**{name: x for name, x in arrays.items() if x is not None}))
