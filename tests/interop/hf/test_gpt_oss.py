"""gpt-oss, as transformers has it, and its packed experts."""

import json

import ml_dtypes
import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.interop import mxfp4
from moejax.interop.hf import gpt_oss
from moejax.interop.hf.fields import Fields
from moejax.model_files.verify import findings
from tests.contracts import tiny
from tests.interop import parity

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "sliding_window": 5,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 15e4,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
CASES = {
    "as released": {"rope_parameters": YARN},
    "tied, no biases, 3 heads over 1, plain positions": {
        "tie_word_embeddings": True,
        "attention_bias": False,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
}


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    """Weights so large that the activation's bounds are reached; float32 alone is wrong by 4e-5 then."""
    _, transformers = parity.libraries()
    parity.check(transformers.GptOssConfig(**TINY | own), tmp_path, scale=0.5)


@pytest.mark.nightly
def test_gradients(tmp_path):
    """Of sinks, biases and routers too."""
    _, transformers = parity.libraries()
    parity.check_gradients(transformers.GptOssConfig(**TINY | CASES["as released"]), tmp_path)


def test_an_older_file_says_the_same():
    """As the hub has gpt-oss-20b."""
    older = {
        "rope_theta": 150000,
        "rope_scaling": {name: value for name, value in YARN.items() if name != "rope_theta"},
        "initial_context_length": 4096,
        "experts_per_token": 2,
        "swiglu_limit": 7.0,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    }
    models = []
    for own in (older, {"rope_parameters": YARN}):
        fields = Fields(TINY | {"num_hidden_layers": 6} | own)
        models.append(gpt_oss.read(fields))
        assert fields.context == 64
        fields.done()
    assert models[0] == models[1]
    assert [(group.repeat, len(group.blocks)) for group in models[0].groups] == [(3, 2)]
    assert [block.attn.window for block in models[0].groups[0].blocks] == [5, None]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "quant_method='gptq' is not supported; it may be 'mx",
        ),
        ({"quantization_config": {"quant_method": "mxfp4", "bits": 3}}, "not known for this family: bits=3"),
        ({"swiglu_limit": 5.0}, "swiglu_limit=5.0 is not supported"),
        ({"experts_per_token": 3}, "experts_per_token=3 is not supported; it must be 2"),
        ({"initial_context_length": 8192}, "initial_context_length=8192 is not supported; it must be 4096"),
        ({"rope_parameters": None}, "has neither rope_parameters nor rope_scaling"),
    ],
)
def test_what_it_is_not_is_refused(own, message):
    with pytest.raises(UsageError, match=message):
        gpt_oss.read(Fields(TINY | {"rope_parameters": YARN} | own))


def test_packed_experts_open_as_what_they_stand_for(tmp_path):
    """As the hub has them: the same parameters as from a file that holds the unpacked ones."""
    _, transformers = parity.libraries()
    from safetensors.numpy import load_file, save_file

    parity.peer(transformers.GptOssConfig(**TINY | {"rope_parameters": YARN})).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rng, packed, plain = np.random.default_rng(0), {}, {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            packed[name] = plain[name] = tensor.astype(ml_dtypes.bfloat16)
            continue
        experts, rows, columns = tensor.shape
        blocks = rng.integers(0, 256, (experts, columns, rows // 32, 16), np.uint8)
        scales = rng.integers(120, 126, blocks.shape[:-1], np.uint8)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        matrices = [mxfp4.decoded(*pair).T for pair in zip(blocks, scales, strict=True)]
        plain[name] = np.ascontiguousarray(np.stack(matrices), ml_dtypes.bfloat16)
    opened = []
    for folder, tensors, more in (
        ("packed", packed, {"quantization_config": {"quant_method": "mxfp4"}}),
        ("plain", plain, {}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config | more))
        save_file(tensors, tmp_path / folder / "model.safetensors")
        opened.append(parity.opened(tmp_path / folder)[:2])
    (m, params), (other_m, others) = opened
    assert m == other_m
    assert m.dtype == "bfloat16"
    tiny.equal(params, others)
    assert [found for found in findings(tmp_path / "packed", values=True) if not found.good] == []
