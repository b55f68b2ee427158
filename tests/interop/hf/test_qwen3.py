"""Qwen3, as transformers has it."""

import dataclasses

import pytest

from moejax.errors import UsageError
from moejax.interop.hf import families, qwen3
from moejax.interop.hf.fields import Fields
from tests.interop import parity

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
CASES = {
    "untied, windows from layer 1": {
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "tied, biases, 3 heads over 1, yarn": {
        "tie_word_embeddings": True,
        "attention_bias": True,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
}


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    _, transformers = parity.libraries()
    parity.check(transformers.Qwen3Config(**TINY | own), tmp_path)


@pytest.mark.nightly
def test_parity_of_listed_layers(tmp_path):
    """Windows in no regular order."""
    _, transformers = parity.libraries()
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    own = {"use_sliding_window": True, "sliding_window": 2, "layer_types": kinds}
    parity.check(transformers.Qwen3Config(**TINY | own), tmp_path)


def test_an_older_file_says_the_same():
    """As the hub has Qwen3-0.6B: theta by itself, a window that is not used."""
    older = {"rope_theta": 1e6, "rope_scaling": None, "use_sliding_window": False, "sliding_window": None}
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    models = []
    for own in (older, newer):
        fields = Fields(TINY | {"max_window_layers": 28, "hidden_act": "silu"} | own)
        models.append(qwen3.read(fields))
        assert fields.context == 64
        fields.done()
    assert models[0] == models[1]
    assert [group.repeat for group in models[0].groups] == [3]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"layer_types": ["full_attention"]}, "must name 3 layers"),
        ({"layer_types": ["full_attention"] * 2 + ["chunked_attention"]}, "must name 3 layers, each"),
        ({"layer_types": ["sliding_attention"] * 3}, "sliding_window is absent"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
    ],
)
def test_what_it_is_not_is_refused(own, message):
    with pytest.raises(UsageError, match=message):
        qwen3.read(Fields(TINY | own))


def test_a_model_finds_its_family():
    m = qwen3.read(Fields(TINY | CASES["tied, biases, 3 heads over 1, yarn"]))
    assert families.of_model(m) is qwen3.FAMILY
    block = m.groups[0].blocks[0]
    odd = dataclasses.replace(block, attn=dataclasses.replace(block.attn, clip=1.0))
    odd = dataclasses.replace(m, groups=(dataclasses.replace(m.groups[0], blocks=(odd,)),))
    with pytest.raises(UsageError, match=r"layers\[0\].attn.clip is 1.0; a qwen3 has None"):
        families.of_model(odd)
