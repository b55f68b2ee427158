"""Scaled rotary frequencies by hand, against transformers, and the program they leave alone."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import recipes, records
from moejax.errors import UsageError
from moejax.ops import rope
from moejax.ops.rope import Interpolation, Llama3, LongRope, Rotation, Yarn, rotate, rotate_pairs

SHORT, LONG = tuple(np.linspace(1, 1.5, 8).tolist()), tuple(np.linspace(1, 40, 8).tolist())
# the scaling here, rope_parameters there, positions of the text
CASES = {
    "linear": (Interpolation(4.0), {"rope_type": "linear", "factor": 4.0}, 9),
    "llama3": (
        Llama3(8.0, original=8192),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        9,
    ),
    "yarn": (
        Yarn(32.0, original=4096),
        {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
        9,
    ),
    "yarn_gpt_oss": (
        Yarn(32.0, original=4096, truncate=False),
        {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False},
        9,
    ),
    "yarn_deepseek": (
        Yarn(40.0, 4096, attention_factor=rope.long_text_gain(40.0, 0.7) / rope.long_text_gain(40.0, 0.3)),
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 0.7,
            "mscale_all_dim": 0.3,
        },
        9,
    ),
    "yarn_kimi_k2": (
        Yarn(32.0, original=4096, fast=1.0, slow=1.0),
        {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 1.0,
            "beta_slow": 1.0,
        },
        9,
    ),
    "yarn_of_short_texts": (
        Yarn(4.0, original=12, fast=2.0, slow=1.5),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 12,
            "beta_fast": 2,
            "beta_slow": 1.5,
        },
        9,
    ),
}
CASES |= {
    f"longrope_{length}": (
        LongRope(SHORT, LONG, original=64, short_gain=1.25, long_gain=1.25),
        {
            "rope_type": "longrope",
            "short_factor": SHORT,
            "long_factor": LONG,
            "original_max_position_embeddings": 64,
            "attention_factor": 1.25,
        },
        length,
    )
    for length in (64, 65)
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name):
    """Of heads with 8 pairs; there in f32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's imports
        pytest.importorskip("torch", reason="torch comes with the extra: pip install moejax[peers]")
        pytest.importorskip("transformers", reason="comes with the extra: pip install moejax[peers]")
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    scaling, parameters, length = CASES[name]
    config = LlamaConfig(head_dim=16, rope_parameters={"rope_theta": 150000.0, **parameters})
    inv_freq, gain = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=length)
    np.testing.assert_allclose(scaling.frequencies(150000.0, 16, length), inv_freq.numpy(), rtol=1e-5)
    np.testing.assert_allclose(scaling.gain(length), gain, rtol=1e-7)


def test_llama3_by_hand():
    """Theta 16, 4 pairs of 1, 1/2, 1/4, 1/8 radians: 8, 4, 2, 1 turns in 16 pi positions; 4 is fast."""
    got_A = Llama3(factor=8.0, original=16 * np.pi, slow=1.0, fast=4.0).frequencies(16.0, 8, 0)
    third = 1 / 3  # of the way from 1 to 4 turns
    np.testing.assert_allclose(got_A, [1, 1 / 2, (third + (1 - third) / 8) / 4, 1 / 64], rtol=1e-12)


def test_yarn_by_hand():
    """As above; the ramp goes from pair 1 (4 turns) to pair 3 (1 turn), pair 2 lies in the middle."""
    yarn = Yarn(factor=8.0, original=16 * np.pi, slow=1.0, fast=4.0, truncate=False)
    np.testing.assert_allclose(yarn.frequencies(16.0, 8, 0), [1, 1 / 2, 9 / 16 / 4, 1 / 64], rtol=1e-9)
    assert yarn.gain(0) == pytest.approx(0.1 * np.log(8) + 1)
    assert Yarn(8.0, 100, attention_factor=1.0).gain(0) == 1


@pytest.mark.parametrize("turn", [rotate, rotate_pairs])
def test_heads_turn_by_the_scaled_frequencies(turn):
    """Against complex numbers in f64, the gain included, where the slot is longer than the row."""
    scaling, length = LongRope(SHORT[:4], LONG[:4], original=64, long_gain=1.5), 100
    x_A, pos = np.random.default_rng(0).standard_normal(8), 77
    with jax.enable_x64(True):
        sin_cos = Rotation(100.0, 8, scaling).sin_cos(jnp.array([[pos]]), length, jnp.float64)
        got_A = turn(jnp.asarray(x_A)[None, None, None], sin_cos)[0, 0, 0]
    turned = np.exp(1j * pos * 100.0 ** (-np.arange(4) / 4) / LONG[:4]) * 1.5
    if turn is rotate_pairs:
        turned = turned * (x_A[0::2] + 1j * x_A[1::2])
        np.testing.assert_allclose(got_A, np.stack([turned.real, turned.imag], -1).ravel(), rtol=1e-9)
    else:
        turned = turned * (x_A[:4] + 1j * x_A[4:])
        np.testing.assert_allclose(got_A, np.r_[turned.real, turned.imag], rtol=1e-9)


def test_pairs_side_by_side_are_halves_in_another_order():
    x_BTHA = np.random.default_rng(1).standard_normal((1, 3, 2, 6)).astype(np.float32)
    halves, sin_cos = np.r_[0:6:2, 1:6:2], Rotation(100.0, 6).sin_cos(np.arange(3)[None])
    apart = rotate(x_BTHA[..., halves], sin_cos)
    np.testing.assert_array_equal(rotate_pairs(x_BTHA, sin_cos)[..., halves], apart)


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"short has 1 divisors and rope_scaling.long 2"):
        LongRope((1.0,), (1.0, 2.0), original=8)
    with pytest.raises(UsageError, match="has 4 divisors, but heads of width 16 have 8 pairs"):
        LongRope(SHORT[:4], LONG[:4], original=8).frequencies(100.0, 16, 8)
    for make in (Llama3, Yarn):
        with pytest.raises(UsageError, match=r"slow=4.0 must lie between 0 and rope_scaling.fast=1.0"):
            make(2.0, 64, slow=4.0, fast=1.0)
    for make in (Interpolation, lambda factor: Llama3(factor, 64), lambda factor: Yarn(factor, 64)):
        with pytest.raises(UsageError, match=r"factor=0.0 must be positive"):
            make(0.0)


@pytest.mark.parametrize("name", CASES)
def test_a_written_config_has_them(name):
    scaling = CASES[name][0]
    assert records.from_dict(records.to_dict(scaling), recipes.strategies()) == scaling
