"""GGUF files as models of the hub, against what transformers makes of the same files."""

import itertools
import warnings

import numpy as np
import pytest

from moejax.errors import CheckpointError, UsageError
from moejax.interop.gguf.architectures import hub_model
from tests.interop.gguf import models
from tests.interop.gguf.models import A, H, L

ROPE = {"rope_type": "default", "rope_theta": 5e4}
BASE = {
    "vocab_size": 80,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "intermediate_size": 96,
}
EXPERTS = {"moe_intermediate_size": 96, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
CONFIGS = {
    "llama": {"model_type": "llama", "rope_parameters": ROPE, "attention_bias": False, "mlp_bias": False},
    "mixtral": {
        "model_type": "mixtral",
        "rope_parameters": ROPE,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3": {"model_type": "qwen3", "rope_parameters": ROPE},
    "qwen3moe": {
        "model_type": "qwen3_moe",
        "rope_parameters": ROPE,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    | EXPERTS,
    "gemma3": {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 32,
        "sliding_window": 8,
        "layer_types": ["sliding_attention"] * 2,
        "final_logit_softcapping": None,
        "rope_parameters": {
            "full_attention": ROPE,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
}


@pytest.mark.parametrize("model", CONFIGS)
def test_the_config_of_the_hub(tmp_path, model):
    config, _ = hub_model(models.write(tmp_path / "m.gguf", model))
    assert config == BASE | CONFIGS[model]


def transformers_tensors(path, config: dict) -> dict[str, np.ndarray]:
    """What transformers reads from a GGUF file into the model of `config`, as it saves it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        from safetensors.numpy import load_file
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
        found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
        strange = model.load_state_dict(found, strict=False)
        assert not strange.unexpected_keys and set(strange.missing_keys) <= {"lm_head.weight"}
        model.save_pretrained(path.parent / "hub")
    return load_file(path.parent / "hub" / "model.safetensors")


@pytest.mark.parametrize(
    ("model", "tied"), [("llama", True), ("qwen3", False), ("qwen3moe", False), ("gemma3", True)]
)
def test_tensors_are_those_that_transformers_reads(tmp_path, model, tied):
    path = models.write(
        tmp_path / "m.gguf", model, tied=tied, kinds={"blk.0.attn_q.weight": models.KIND.Q8_0}
    )
    config, view = hub_model(path)
    wanted = transformers_tensors(path, config)
    assert set(view.names()) == set(wanted)
    for name, value in wanted.items():
        assert view.info(name).shape == value.shape
        np.testing.assert_array_equal(view.read(name), value, err_msg=name)


def test_experts_of_a_mixtral_are_parts_of_one_tensor(tmp_path):
    path = models.write(tmp_path / "m.gguf", "mixtral")
    _, view = hub_model(path)
    own = "model.layers.1.block_sparse_moe"
    whole = view.file.read("blk.1.ffn_down_exps.weight")
    for expert in range(4):
        np.testing.assert_array_equal(view.read(f"{own}.experts.{expert}.w2.weight"), whole[expert])
    part = view.read(f"{own}.experts.3.w1.weight", (slice(2, 9), slice(32, 64)))
    np.testing.assert_array_equal(part, view.file.read("blk.1.ffn_gate_exps.weight")[3, 2:9, 32:64])
    np.testing.assert_array_equal(
        view.read(f"{own}.gate.weight"), view.file.read("blk.1.ffn_gate_inp.weight")
    )


def test_rows_of_a_head_are_halves_again_and_any_part_of_them(tmp_path):
    """Row 2i + j of a head there is row i + j A/2 on the hub."""
    order = np.arange(H * A, dtype=np.float32)[:, None] * np.ones((1, 64), np.float32)
    path = models.write(tmp_path / "m.gguf", "llama", extra={"blk.0.attn_q.weight": order})
    name = "model.layers.0.self_attn.q_proj.weight"
    _, view = hub_model(path)
    whole = view.read(name)
    np.testing.assert_array_equal(whole[:A, 0], [*range(0, A, 2), *range(1, A, 2)])
    for first, last in itertools.product(
        (slice(None), slice(3, 40), slice(33, 34), 35), (slice(None), slice(2, 5))
    ):
        np.testing.assert_array_equal(view.read(name, (first, last)), whole[first, last])


REFUSED = [
    ("llama", {"residual_scale": 0.5}, "llama has fields that are not known .* residual_scale=0.5"),
    ("llama", {"vocab_size": 81}, "vocab_size=81 is not supported; it must be 80"),
    ("llama", {"rope.dimension_count": 16}, "rope.dimension_count=16 is not supported; it must be 32"),
    ("llama", {"attention.head_count_kv": [2, 1]}, "attention.head_count_kv=array"),
    ("llama", {"rope.scaling.type": "longrope"}, "rope.scaling.type='longrope' is not supported"),
    ("llama", {"block_count": 2**31}, "block_count=2147483648 must be at most 21"),
    ("llama", {"embedding_length": None}, "has no 'embedding_length'"),
    ("qwen3moe", {"expert_shared_count": 1}, "expert_shared_count=1"),
    ("qwen3moe", {"expert_gating_func": 2}, "expert_gating_func=2 is not supported; it must be 1"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
]


@pytest.mark.parametrize(("model", "metadata", "message"), REFUSED)
def test_a_key_that_cannot_be_honoured_is_named(tmp_path, model, metadata, message):
    path = models.write(tmp_path / "m.gguf", model, metadata=metadata)
    with pytest.raises(UsageError, match=message):
        hub_model(path)


def test_lists_with_one_value_for_every_layer(tmp_path):
    path = models.write(tmp_path / "m.gguf", "llama", metadata={"attention.head_count_kv": [2] * L})
    assert hub_model(path)[0]["num_key_value_heads"] == 2


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"rope_type": "default"}),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        ),
    ],
)
def test_rotary_positions_for_long_texts(tmp_path, metadata, wanted):
    config, _ = hub_model(models.write(tmp_path / "m.gguf", "qwen3", metadata=metadata))
    assert config["rope_parameters"] == wanted | {"rope_theta": 5e4}


def test_gemma_scales_positions_where_it_sees_everything(tmp_path):
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    metadata = scaling | {"attention.sliding_window_pattern": 2, "rope.freq_base_swa": 2e4}
    config, _ = hub_model(models.write(tmp_path / "m.gguf", "gemma3", metadata=metadata))
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    assert config["rope_parameters"] == {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }


def llama3_table(factor: float, theta: float, count: int = A // 2) -> np.ndarray:
    """As transformers computes it, for texts of 8192: by wave length, in branches."""
    factors = []
    for i in range(count):
        length = 2 * np.pi * theta ** (i / count)
        if length < 8192 / 4:
            factors.append(1.0)
        elif length > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / length - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_a_table_of_frequencies_is_that_of_llama_3(tmp_path):
    table = llama3_table(32.0, 5e5)
    own = {"rope.freq_base": 5e5}
    path = models.write(tmp_path / "m.gguf", "llama", metadata=own, extra={"rope_freqs.weight": table})
    config, view = hub_model(path)
    assert config["rope_parameters"] == {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert not any("rope" in name for name in view.names())
    table[5] *= 1.5
    path = models.write(tmp_path / "w.gguf", "llama", metadata=own, extra={"rope_freqs.weight": table})
    with pytest.raises(UsageError, match=r"rope_freqs\.weight is not that of"):
        hub_model(path)


def test_tensors_that_do_not_belong_to_the_model(tmp_path):
    extra = {"blk.0.attn_q_norm.weight": np.ones(A, np.float32)}
    with pytest.raises(CheckpointError, match=r"a llama has no tensor 'blk\.0\.attn_q_norm"):
        hub_model(models.write(tmp_path / "m.gguf", "llama", extra=extra))
    with pytest.raises(
        CheckpointError, match=r"'blk\.0\.ffn_gate_exps\.weight' has 4 experts, the file says 8"
    ):
        hub_model(models.write(tmp_path / "e.gguf", "mixtral", metadata={"expert_count": 8}))


@pytest.mark.parametrize("architecture", ["falcon", "moejax.config"])
def test_an_architecture_that_is_not_read(tmp_path, architecture, monkeypatch):
    monkeypatch.setitem(models.METADATA, architecture, models.LLAMA)
    with pytest.raises(
        UsageError, match=f"general.architecture='{architecture}' is not read; known are llama"
    ):
        hub_model(models.write(tmp_path / "m.gguf", architecture))
