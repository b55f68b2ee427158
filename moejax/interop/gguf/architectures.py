"""What a GGUF file says of its model, as a config.json of the Hugging Face hub.

Every metadata key of the architecture's own prefix is honoured, or the file is refused with its name.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from moejax.errors import UsageError
from moejax.interop.gguf.hub_view import HubView, hub_view
from moejax.interop.gguf.source import GgufFile
from moejax.interop.hf.fields import Fields

FREQUENCIES = "rope_freqs.weight"  # what each rotary frequency is divided by
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SOFTMAX = 1  # a value of expert_gating_func
MAX_EXPERTS = 1 << 16
GEMMA3_PERIOD = 6  # every sixth layer sees everything
GEMMA3_27B_LAYERS = 62  # the one size whose queries have a scale of their own


def hub_model(path) -> tuple[dict[str, Any], HubView]:
    """(config.json, tensors) of the model in a GGUF file, under the names that the hub gives them.

    Raises:
      CheckpointError: the file is damaged, or holds tensors of another model.
      UsageError: the architecture, or a setting of it, is not known here; names it.
    """
    file = GgufFile(path)
    config = hub_config(file)
    return config, hub_view(file, config, ignored=(FREQUENCIES,))


def hub_config(file: GgufFile) -> dict[str, Any]:
    """config.json of the model in a GGUF file.

    Raises:
      UsageError: the architecture, or a setting of it, is not known here; names it.
    """
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise UsageError(f"{file.path} is of type {kind!r}; give the file of a whole model")
    architecture = file.metadata.get("general.architecture")
    if architecture not in READERS:
        known = ", ".join(READERS)
        raise UsageError(f"{file.path}: general.architecture={architecture!r} is not read; known are {known}")
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    fields = Fields({key: _same(value) for key, value in own.items()}, f"{file.path}: {architecture}")
    config = READERS[architecture](fields, file)
    fields.done()
    return config


def _same(value):
    """A list with an entry per layer as one value, where all are the same."""
    if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
        return value[0].item()
    return value


def _decoder(fields: Fields, file: GgufFile) -> dict[str, Any]:
    """What all of these architectures have."""
    vocab = file.info("token_embd.weight").shape[0] if "token_embd.weight" in file.names() else None
    fields.fixed("vocab_size", vocab)
    fields.fixed("attention.causal", True)
    width, heads = (
        fields.take("embedding_length", int, least=1),
        fields.take("attention.head_count", int, least=1),
    )
    head_width = fields.take("attention.key_length", int, width // heads, least=1)
    fields.fixed("attention.value_length", head_width)
    fields.fixed("rope.dimension_count", head_width)
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": fields.take("block_count", int, least=1, most=len(file.names())),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.take("attention.head_count_kv", int, heads, least=1),
        "head_dim": head_width,
        "rms_norm_eps": fields.take("attention.layer_norm_rms_epsilon", float),
        "max_position_embeddings": fields.take("context_length", int, least=1),
        "tie_word_embeddings": "output.weight" not in file.names(),
    }


def _llama(fields: Fields, file: GgufFile) -> dict[str, Any]:
    config = _decoder(fields, file)
    config["rope_parameters"] = _rope(fields, file, config)
    fields.fixed("tensor_data_layout", "Meta AI original pth")
    config["intermediate_size"] = fields.take("feed_forward_length", int, least=1)
    experts = fields.take("expert_count", int, 0, most=MAX_EXPERTS)
    if experts:
        fields.fixed("expert_gating_func", SOFTMAX)
        used = fields.take("expert_used_count", int, least=1)
        return config | {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": used}
    fields.fixed("expert_used_count", 0)
    config["attention_bias"] = "blk.0.attn_q.bias" in file.names()
    config["mlp_bias"] = "blk.0.ffn_up.bias" in file.names()
    return config | {"model_type": "llama"}


def _qwen3(fields: Fields, file: GgufFile) -> dict[str, Any]:
    config = _decoder(fields, file)
    config["rope_parameters"] = _rope(fields, file, config)
    return config | {
        "model_type": "qwen3",
        "intermediate_size": fields.take("feed_forward_length", int, least=1),
    }


def _qwen3moe(fields: Fields, file: GgufFile) -> dict[str, Any]:
    config = _decoder(fields, file)
    config["rope_parameters"] = _rope(fields, file, config)
    fields.fixed("expert_gating_func", SOFTMAX)
    dense = fields.take("feed_forward_length", int, None)  # of layers without experts; there are none
    return config | {
        "model_type": "qwen3_moe",
        "intermediate_size": dense or fields.take("expert_feed_forward_length", int),
        "moe_intermediate_size": fields.take("expert_feed_forward_length", int, least=1),
        "num_experts": fields.take("expert_count", int, least=1, most=MAX_EXPERTS),
        "num_experts_per_tok": fields.take("expert_used_count", int, least=1),
        "norm_topk_prob": True,  # llama.cpp does so whatever the model was trained with
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _gemma3(fields: Fields, file: GgufFile) -> dict[str, Any]:
    config = _decoder(fields, file)
    layers, window = config["num_hidden_layers"], fields.take("attention.sliding_window", int, None)
    period = fields.take("attention.sliding_window_pattern", int, GEMMA3_PERIOD, least=1)
    local = [bool(window) and (layer + 1) % period != 0 for layer in range(layers)]
    local_theta = fields.take("rope.freq_base_swa", float, 1e4)
    scale = config["head_dim"]
    if layers == GEMMA3_27B_LAYERS:
        scale = config["hidden_size"] // config["num_attention_heads"]
    return config | {
        "model_type": "gemma3_text",
        "intermediate_size": fields.take("feed_forward_length", int, least=1),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scale,
        "sliding_window": window,
        "layer_types": ["sliding_attention" if own else "full_attention" for own in local],
        "final_logit_softcapping": fields.take("final_logit_softcapping", float, None),
        "rope_parameters": {
            "full_attention": _rope(fields, file, config, 1e6),
            "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
        },
    }


READERS: dict[str, Callable[[Fields, GgufFile], dict[str, Any]]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "gemma3": _gemma3,
}


def _rope(fields: Fields, file: GgufFile, config: dict[str, Any], theta: float = 1e4) -> dict[str, Any]:
    """rope_parameters."""
    theta = fields.take("rope.freq_base", float, theta)
    fields.unused("rope.scaling.finetuned")  # a note on how the model was trained
    scale = fields.take("rope.scale_linear", float, 0.0)  # the older name
    factor = fields.take("rope.scaling.factor", float, scale) or 1.0
    kind = fields.choose("rope.scaling.type", {own: own for own in ("none", "linear", "yarn")}, "linear")
    if kind == "none" or factor == 1.0:
        fields.unused("rope.scaling.original_context_length")
        own = {"rope_type": "default"}
    elif kind == "linear":
        fields.unused("rope.scaling.original_context_length")
        own = {"rope_type": "linear", "factor": factor}
    else:
        own = _yarn(fields, factor, config["max_position_embeddings"])
    if FREQUENCIES in file.names():
        if own != {"rope_type": "default"}:
            raise UsageError(
                f"{file.path}: {FREQUENCIES} and rope.scaling.type={kind!r} cannot both be honoured"
            )
        own = _llama3(file, theta)
    return own | {"rope_theta": theta}


def _yarn(fields: Fields, factor: float, context: int) -> dict[str, Any]:
    for name in ("yarn_ext_factor", "yarn_attn_factor", "attn_factor"):
        fields.fixed(f"rope.scaling.{name}", 1.0)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": fields.take("rope.scaling.original_context_length", int, context),
        "beta_fast": fields.take("rope.scaling.yarn_beta_fast", float, 32.0),
        "beta_slow": fields.take("rope.scaling.yarn_beta_slow", float, 1.0),
    }


def _llama3(file: GgufFile, theta: float) -> dict[str, Any]:
    """The settings that a table of frequencies was made with; those of Llama 3.1 and 3.2 are known."""
    found = file.read(FREQUENCIES).astype(np.float64).ravel()
    if np.all(found == 1):
        return {"rope_type": "default"}
    own = LLAMA3 | {"rope_type": "llama3", "factor": float(found.max())}
    if not np.allclose(found, llama3_factors(len(found), theta, own), rtol=1e-4):
        settings = ", ".join(f"{name}={value}" for name, value in own.items())
        raise UsageError(
            f"{file.path}: the tensor {FREQUENCIES} is not that of {settings}; no other is known"
        )
    return own


def llama3_factors(count: int, theta: float, own: dict[str, Any]) -> np.ndarray:
    """What Llama 3 divides each of its `count` rotary frequencies by, for long texts."""
    low, high = own["low_freq_factor"], own["high_freq_factor"]
    turns = own["original_max_position_embeddings"] * theta ** (-np.arange(count) / count) / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)  # of the frequency as it is
    return 1 / ((1 - share) / own["factor"] + share)
