"""Qwen3, dense (Yang et al. 2025, arXiv 2505.09388)."""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig
from moejax.ffn.dense import Dense
from moejax.interop.hf import rope, turns, windows
from moejax.interop.hf.family import Family, groups_of, kind
from moejax.interop.hf.tensor_map import TensorMap, layers


def read(fields) -> ModelConfig:
    fields.fixed("hidden_act", "silu")
    fields.fixed("attention_dropout", 0.0)
    num_layers = fields.take("num_hidden_layers", int, least=1)
    ffn = Dense(hidden=fields.take("intermediate_size", int))
    norm_eps = fields.take("rms_norm_eps", float, 1e-6)
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=fields.take("hidden_size", int),
        groups=groups_of(BlockConfig(attn, ffn) for attn in read_attention(fields, num_layers, norm_eps)),
        tied=fields.take("tie_word_embeddings", bool, False),
        norm_eps=norm_eps,
    )


def read_attention(fields, num_layers: int, norm_eps: float) -> list[Gqa]:
    """Of every layer; the first `max_window_layers` have no window."""
    num_heads, bias = fields.take("num_attention_heads", int), fields.take("attention_bias", bool, False)
    shared = {
        "num_heads": num_heads,
        "num_kv_heads": fields.take("num_key_value_heads", int, num_heads),
        "head_width": fields.take("head_dim", int, 128),
        "bias": bias,
        "out_bias": bias,
        "qk_norm": "head",
        "norm_eps": norm_eps,
        **rope.read(fields, 1e4),
    }
    window = fields.take("sliding_window", int, None, least=1)
    window = window if fields.take("use_sliding_window", bool, False) else None
    first = fields.take("max_window_layers", int, 28)
    found = windows.read(fields, num_layers, window, lambda layer: window is not None and layer >= first)
    return [Gqa(window=window, **shared) for window in found]


def write(m: ModelConfig) -> dict:
    ffn = kind(layers(m)[0][1].ffn, Dense, "qwen3")
    return write_attention(m, "qwen3") | {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "intermediate_size": ffn.hidden,
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
        "hidden_act": "silu",
    }


def write_attention(m: ModelConfig, family: str) -> dict:
    """What `read_attention` takes."""
    attn, *_ = [kind(block.attn, Gqa, family) for _, block, _ in layers(m)]
    found = windows.write(m)
    first = ([*found["layer_types"], windows.KINDS[0]]).index(windows.KINDS[0])
    return found | {
        "num_attention_heads": attn.num_heads,
        "num_key_value_heads": attn.num_kv_heads,
        "head_dim": attn.head_width,
        "attention_bias": attn.bias,
        "rope_parameters": rope.write(attn.rope_theta, attn.rope_scaling),
        "use_sliding_window": found["sliding_window"] is not None,
        "max_window_layers": first,
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    def layer(block):
        return (*turns.norms(), *turns.attention(block.attn), *turns.mlp(block.ffn))

    return TensorMap(turns.once(m), layer, turns.ignored(m))


FAMILY = Family("qwen3", "Qwen3ForCausalLM", read, write, tensor_map)
