"""FLOPs of single operations, written as HLO text so that every backend's forms are met."""

import numpy as np
import pytest

from moejax.analysis.flops import count


def entry(*lines, before=""):
    return "\n".join([f"HloModule m\n{before}", "ENTRY %main (a: f32[]) -> f32[] {", *lines, "}"])


def test_dot_with_two_contractions_and_a_batch_dim():
    text = entry(
        "%a = f32[2,3,4,5]{3,2,1,0} parameter(0)",
        "%b = f32[2,4,5,6]{3,2,1,0} parameter(1)",
        "ROOT %d = f32[2,3,6]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2,3}, "
        "rhs_batch_dims={0}, rhs_contracting_dims={1,2}",
    )
    assert count(text).matmul_flops == 2 * 2 * 3 * 6 * (4 * 5)


@pytest.mark.parametrize("target", ["__onednn$matmul", "__cublas$gemm", "__cublas$lt$matmul"])
@pytest.mark.parametrize(
    ("a", "b", "out"), [("7,3", "3,5", "7,5"), ("3,7", "5,3", "7,5"), ("2,7,3", "2,3,5", "2,7,5")]
)
def test_matmul_library_calls_in_any_layout(target, a, b, out):
    text = entry(
        f"%a = f32[{a}] parameter(0)",
        f"%b = f32[{b}] parameter(1)",
        f'ROOT %d = (f32[{out}], s8[64]) custom-call(%a, %b), custom_call_target="{target}"',
    )
    assert count(text).matmul_flops == 2 * 3 * np.prod([int(n) for n in out.split(",")])


def test_plain_convolution_leaves_out_the_padding():
    """5 inputs, window 3, padding 1: the outer two of 5 positions meet 2 inputs, the others 3."""
    text = entry(
        "%a = f32[2,5,7] parameter(0)",
        "%b = f32[3,7,4] parameter(1)",
        "ROOT %d = f32[2,5,4] convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
    )
    assert count(text).matmul_flops == 2 * (2 * 7 * 4) * (2 + 3 + 3 + 3 + 2)


def test_strided_and_dilated_convolution_against_a_count_by_hand():
    """Inputs at 0, 2, 4; window taps 0 and 2; stride 2: both taps of both positions meet an input."""
    text = entry(
        "%a = f32[1,3,1] parameter(0)",
        "%b = f32[2,1,1] parameter(1)",
        "ROOT %d = f32[1,2,1] convolution(%a, %b), window={size=2 stride=2 lhs_dilate=2 rhs_dilate=2}, "
        "dim_labels=b0f_0io->b0f",
    )
    assert count(text).matmul_flops == 2 * 4


def test_tpu_writes_a_batched_dot_as_a_dilated_convolution():
    """The batch of 4 is a spatial dim whose window meets exactly one input per output."""
    text = entry(
        "%a = bf16[4,8,16] parameter(0)",
        "%b = bf16[4,16,32] parameter(1)",
        "ROOT %d = bf16[4,8,32] convolution(%a, %b), window={size=4 stride=3 pad=0_0 lhs_dilate=4}, "
        "dim_labels=0bf_0io->0bf",
    )
    assert count(text).matmul_flops == 2 * 4 * 8 * 16 * 32


def test_reductions_count_and_integers_do_not():
    add = "%add (x: f32[], y: f32[]) -> f32[] {\n%x = f32[] parameter(0)\n%y = f32[] parameter(1)\n"
    add += "ROOT %s = f32[] add(%x, %y)\n}\n"
    text = entry(
        "%a = f32[10,20] parameter(0)",
        "%i = s32[10,20] parameter(1)",
        "%zero = f32[] constant(0)",
        "%j = s32[10,20] add(%i, %i)",
        "%sum = f32[10] reduce(%a, %zero), dimensions={1}, to_apply=%add",
        "%windows = f32[10,18] reduce-window(%a, %zero), window={size=1x3}, to_apply=%add",
        "ROOT %exp = f32[10] exponential(%sum)",
        before=add,
    )
    assert count(text).flops == (200 - 10) + 180 * 2 + 10
    assert count(text).matmul_flops == 0
