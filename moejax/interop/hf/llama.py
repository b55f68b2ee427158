"""Llama (Touvron et al. 2023, arXiv 2302.13971; Grattafiori et al. 2024, arXiv 2407.21783) and SmolLM2."""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig
from moejax.ffn.dense import Dense
from moejax.interop.hf import rope, turns
from moejax.interop.hf.family import Family, groups_of, kind, only_block
from moejax.interop.hf.tensor_map import TensorMap


def read(fields) -> ModelConfig:
    fields.fixed("hidden_act", "silu")
    fields.fixed("attention_dropout", 0.0)
    fields.unused(
        "rope_interleaved", "is_llama_config"
    )  # SmolLM's notes of how its trainer stored the weights
    width, num_heads = fields.take("hidden_size", int), fields.take("num_attention_heads", int, least=1)
    bias = fields.take("attention_bias", bool, False)
    attn = Gqa(
        num_heads=num_heads,
        num_kv_heads=fields.take("num_key_value_heads", int, num_heads),
        head_width=fields.take("head_dim", int, width // num_heads),
        bias=bias,
        out_bias=bias,
        **rope.read(fields, 1e4),
    )
    ffn = Dense(hidden=fields.take("intermediate_size", int), bias=fields.take("mlp_bias", bool, False))
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=width,
        groups=groups_of([BlockConfig(attn, ffn)] * fields.take("num_hidden_layers", int, least=1)),
        tied=fields.take("tie_word_embeddings", bool, False),
        norm_eps=fields.take("rms_norm_eps", float, 1e-6),
    )


def write(m: ModelConfig) -> dict:
    block = only_block(m, "llama")
    attn, ffn = kind(block.attn, Gqa, "llama"), kind(block.ffn, Dense, "llama")
    return {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": attn.num_heads,
        "num_key_value_heads": attn.num_kv_heads,
        "head_dim": attn.head_width,
        "attention_bias": attn.bias,
        "mlp_bias": ffn.bias,
        "rope_parameters": rope.write(attn.rope_theta, attn.rope_scaling),
        "intermediate_size": ffn.hidden,
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
        "hidden_act": "silu",
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    def layer(block):
        return (*turns.norms(), *turns.attention(block.attn), *turns.mlp(block.ffn))

    return TensorMap(turns.once(m), layer, turns.ignored(m))


FAMILY = Family("llama", "LlamaForCausalLM", read, write, tensor_map)
