"""A config.json of the hub as the metadata of a GGUF file: what `architectures` reads, written."""

from collections.abc import Mapping
from typing import Any

from moejax.config import require
from moejax.interop.gguf.architectures import LLAMA3

ARCHITECTURES = {
    "llama": "llama",
    "mixtral": "llama",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
}  # by model_type
DECODER = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "vocab_size": "vocab_size",
}
EXPERTS = {
    "mixtral": {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
    "qwen3_moe": {
        "num_experts": "expert_count",
        "num_experts_per_tok": "expert_used_count",
        "moe_intermediate_size": "expert_feed_forward_length",
    },
}
SCALINGS = {
    "default": {},
    "linear": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context_length",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    },
    "llama3": {},  # a tensor says it all
}


def metadata_of(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The metadata of a model, without its tokenizer.

    Args:
      config: of the hub.
      name: of the model, for people.

    Raises:
      UsageError: llama.cpp's files have no place for such a model.
    """
    kind = config["model_type"]
    require(
        kind in ARCHITECTURES,
        f"a {kind} cannot be written as GGUF; {', '.join(ARCHITECTURES)} can, and format='hf' writes any",
    )
    architecture, names = ARCHITECTURES[kind], DECODER | EXPERTS.get(kind, {})
    found = {theirs: config[ours] for ours, theirs in names.items() if ours in config}
    width = config["head_dim"]
    found |= {"attention.key_length": width, "attention.value_length": width, "rope.dimension_count": width}
    found |= _rope(config["rope_parameters"])
    general = {"general.architecture": architecture, "general.type": "model", "general.name": name}
    return general | {f"{architecture}.{key}": value for key, value in found.items()}


def _rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    kind = parameters.get("rope_type", "default")
    require(
        kind in SCALINGS, f"rope_type={kind!r} has no place in a GGUF file; it may be {', '.join(SCALINGS)}"
    )
    for name, wanted in LLAMA3.items() if kind == "llama3" else ():
        found = parameters[name]
        require(
            found == wanted, f"{name}={found!r} has no place in a GGUF file, whose readers assume {wanted}"
        )
    own = {theirs: parameters[ours] for ours, theirs in SCALINGS[kind].items() if ours in parameters}
    scaling = {"type": kind} | own if own else {}
    return {"rope.freq_base": parameters["rope_theta"]} | {
        f"rope.scaling.{key}": own for key, own in scaling.items()
    }
