"""Tiny GGUF models with random weights, written by gguf-py: metadata and tensors as llama.cpp wants them."""

import gguf
import numpy as np

from moejax.interop.gguf import quants

D, F, V, H, G, A, E, L = 64, 96, 80, 4, 2, 32, 4, 2
KIND = quants.Kind

DECODER = {
    "block_count": L,
    "context_length": 64,
    "embedding_length": D,
    "attention.head_count": H,
    "attention.head_count_kv": G,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 5e4,
}
DENSE = {"feed_forward_length": F}
LLAMA = DECODER | DENSE | {"attention.key_length": A, "rope.dimension_count": A, "vocab_size": V}
HEADS = {"attention.key_length": A, "attention.value_length": A}
EXPERTS = {"expert_count": E, "expert_used_count": 2}
METADATA = {
    "llama": LLAMA,
    "mixtral": LLAMA | EXPERTS,
    "qwen3": DECODER | DENSE | HEADS,
    "qwen3moe": DECODER | DENSE | HEADS | EXPERTS | {"expert_feed_forward_length": F},
    "gemma3": DECODER | DENSE | HEADS | {"attention.sliding_window": 8},
}


def shapes(model: str, tied: bool = False) -> dict[str, tuple[int, ...]]:
    """Of every tensor, as numpy has them."""
    found = {"token_embd": (V, D), "output_norm": (D,)} | ({} if tied else {"output": (V, D)})
    layer = {"attn_norm": (D,), "ffn_norm": (D,), "attn_output": (D, H * A)}
    layer |= {"attn_q": (H * A, D), "attn_k": (G * A, D), "attn_v": (G * A, D)}
    if model in ("mixtral", "qwen3moe"):
        layer |= {"ffn_gate_inp": (E, D), "ffn_gate_exps": (E, F, D)}
        layer |= {"ffn_up_exps": (E, F, D), "ffn_down_exps": (E, D, F)}
    else:
        layer |= {"ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F)}
    if model in ("qwen3", "qwen3moe", "gemma3"):
        layer |= {"attn_q_norm": (A,), "attn_k_norm": (A,)}
    if model == "gemma3":
        layer |= {"post_attention_norm": (D,), "post_ffw_norm": (D,)}
    found |= {f"blk.{number}.{name}": shape for number in range(L) for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in found.items()}


def write(path, model: str, *, tied=False, metadata=None, extra=None, kinds=None):
    """A file of random weights.

    Args:
      model: a key of METADATA.
      metadata: keys of the architecture's own prefix, or of the tokenizer's, beside the usual ones; None
        leaves one out.
      extra: more tensors by name.
      kinds: a type for some tensors; the others are F32.
    """
    architecture = "llama" if model == "mixtral" else model
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in ({"tokenizer.ggml.model": "none"} | METADATA[model] | (metadata or {})).items():
        if value is not None:
            _add(writer, key if key.startswith("tokenizer.") else f"{architecture}.{key}", value)
    rng = np.random.default_rng(7)
    random = {name: _random(rng, name, shape) for name, shape in shapes(model, tied).items()}
    for name, value in (random | (extra or {})).items():
        kind = (kinds or {}).get(name, KIND.F32)
        writer.add_tensor(name, quants.encode(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _random(rng, name: str, shape) -> np.ndarray:
    middle = 1.0 if "norm" in name else 0.0
    return (middle + rng.normal(size=shape) * shape[-1] ** -0.5).astype(np.float32)


def _add(writer, key: str, value) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)
