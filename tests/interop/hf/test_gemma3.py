"""Gemma 3, as transformers has it."""

import pytest

from moejax.errors import UsageError
from moejax.interop.hf import gemma3
from moejax.interop.hf.fields import Fields
from moejax.interop.hf.tensor_map import layers
from moejax.ops.rope import Interpolation
from tests.interop import parity

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "sliding_window": 5,
    "query_pre_attn_scalar": 24,
}
PERIOD_3 = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
CASES = {
    "tied, period 3, long texts in full layers": {
        "layer_types": PERIOD_3,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        },
    },
    "untied, biases, 2 heads over 1": {
        "tie_word_embeddings": False,
        "attention_bias": True,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 12,
        "layer_types": ["full_attention", "sliding_attention"],
        "num_hidden_layers": 2,
    },
}


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    _, transformers = parity.libraries()
    parity.check(transformers.Gemma3TextConfig(**TINY | own), tmp_path)


def test_an_older_file_says_the_same():
    """As the hub has Gemma 3: a period, two thetas, a scaling of the full layers alone."""
    older = {
        "sliding_window_pattern": 3,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e3,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "attn_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    models = []
    for own in (older, CASES["tied, period 3, long texts in full layers"]):
        fields = Fields(TINY | own)
        models.append(gemma3.read(fields))
        assert fields.context == 64
        fields.done()
    assert models[0] == models[1]
    attn = layers(models[0])[2][1].attn
    assert (attn.window, attn.rope_theta, attn.rope_scaling) == (None, 1e6, Interpolation(8.0))
    assert attn.scale == 24**-0.5
    assert models[0].embed_scale == 32**0.5


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"final_logit_softcapping": 30.0},
            "final_logit_softcapping=30.0 is not supported; it must be absent",
        ),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ({"hidden_activation": "gelu"}, "hidden_activation='gelu' is not supported; it may be 'gelu_pyt"),
    ],
)
def test_what_it_is_not_is_refused(own, message):
    with pytest.raises(UsageError, match=message):
        gemma3.read(Fields(TINY | own))
