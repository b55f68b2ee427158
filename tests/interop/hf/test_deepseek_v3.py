"""DeepSeek-V3, as transformers has it."""

import json
import logging

import jax
import ml_dtypes
import numpy as np
import pytest

from moejax import specs as sp
from moejax.errors import CheckpointError, UsageError
from moejax.interop.hf import directory
from moejax.model import forward as decoder
from tests.interop import parity
from tests.interop.hf import test_deepseek_v2
from tests.interop.test_mxfp4 import Held

TINY = test_deepseek_v2.TINY | {
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 10,
    "num_nextn_predict_layers": 0,
}
CASES = {
    "groups, YaRN": {
        "max_position_embeddings": 2560,
        "rope_parameters": test_deepseek_v2.YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "halves are turned": {
        "rope_interleave": False,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "num_hidden_layers": 2,
    },
}


def config(**own):
    _, transformers = parity.libraries()
    return transformers.DeepseekV3Config(**TINY | own)


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    parity.check(config(**own), tmp_path)


# As the file on the hub says it, without what every family overlooks.
WHOLE = test_deepseek_v2.WHOLE | {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rope_scaling": test_deepseek_v2.LITE["rope_scaling"] | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
}


def test_the_released_model_has_as_many_parameters_as_its_paper_says(caplog):
    """Section 4.2: 671B, of which a token passes 37B, the input embedding (0.9B) aside."""
    with caplog.at_level(logging.WARNING):
        assert test_deepseek_v2.billions(WHOLE) == (671.0, 37.6)
    assert "layers that predict the token after the next are not read" in caplog.text


def test_a_model_with_a_name_of_its_own_is_known_by_its_architecture():
    """Kimi K2: a trillion parameters, 32 billion of which a token passes, but for the embedding."""
    rope = WHOLE["rope_scaling"] | {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0}
    experts = {"n_routed_experts": 384, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827}
    sizes = {"vocab_size": 163840, "num_attention_heads": 64, "num_key_value_heads": 64}
    own = {"model_type": "kimi_k2", "first_k_dense_replace": 1, "num_nextn_predict_layers": 0}
    assert test_deepseek_v2.billions(WHOLE | own | experts | sizes | {"rope_scaling": rope}) == (1026.4, 32.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topk_method": "greedy"}, "topk_method='greedy' is not supported; it must be 'noaux_tc'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method='awq' is not supported"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}},
            r"weight_block_size=\[64, 64\] is not supported",
        ),
        ({"topk_group": 9}, "selector.keep_groups=9 of selector.num_groups=8 is impossible"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        directory.describe(WHOLE | change, "config.json")


def tiny():
    """(Description, tensors by name) of a model with random weights."""
    fields = json.loads(json.dumps(config().to_dict())) | {"architectures": ["DeepseekV3ForCausalLM"]}
    description = directory.describe(fields, "config.json")
    rng, m = np.random.default_rng(0), description.model
    params = sp.tree_map(lambda spec: rng.standard_normal(spec.shape, np.float32), decoder.specs(m))
    return description, {name: make() for name, _, make in directory.tensors(description.family, m, params)}


def test_packed_matrices_are_read_as_what_they_stand_for():
    """Linear layers but routers in 8 bits with a scale each; a tensor after the last layer is no part."""
    description, plain = tiny()
    packed = {"model.layers.3.eh_proj.weight": np.ones((2, 2), np.float32)}
    for name, tensor in plain.items():
        packed[name] = tensor
        if name.endswith("_proj.weight"):
            small = tensor.astype(ml_dtypes.float8_e4m3fn)
            packed |= {name: small, f"{name}_scale_inv": np.full((1, 1), 0.5, np.float32)}
            plain[name] = 0.5 * small.astype(np.float32)
    m, found = directory.read(Held(**packed), description)
    assert m.dtype == m.param_dtype == "float32"
    jax.tree.map(np.testing.assert_array_equal, found, directory.read(Held(**plain), description)[1])


def test_the_correction_keeps_its_bits_in_a_model_of_half_precision():
    description, plain = tiny()
    half = {
        name: tensor if name.endswith("correction_bias") else tensor.astype(ml_dtypes.bfloat16)
        for name, tensor in plain.items()
    }
    m, params = directory.read(Held(**half), description)
    assert m.param_dtype == "bfloat16"
    back = {name: make() for name, _, make in directory.tensors(description.family, m, params)}
    assert back.keys() == half.keys()
    for name, tensor in half.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)


def test_an_unknown_tensor_is_refused():
    description, plain = tiny()
    with pytest.raises(CheckpointError, match=r"'model.layers.2.eh_proj.weight' of memory has no place"):
        directory.read(Held(**plain, **{"model.layers.2.eh_proj.weight": np.ones(2)}), description)
