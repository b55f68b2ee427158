"""Qwen3-MoE: Qwen3 Technical Report (Yang et al. 2025, arXiv 2505.09388)."""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig
from moejax.dispatch.local import Local
from moejax.ffn.dense import Dense
from moejax.ffn.moe import Moe
from moejax.interop.hf import rope, sparse_layers, turns
from moejax.interop.hf.family import Family, groups_of
from moejax.interop.hf.tensor_map import TensorMap
from moejax.routers.score.linear import Linear

NAME = "qwen3_moe"


def read(fields) -> ModelConfig:
    fields.fixed("hidden_act", "silu")
    fields.fixed("attention_dropout", 0.0)
    fields.unused("max_window_layers")  # of Qwen2: here all layers have the window, or none
    width, num_heads = fields.take("hidden_size", int), fields.take("num_attention_heads", int, least=1)
    window = fields.take("sliding_window", int, 4096)
    bias = fields.take("attention_bias", bool, False)
    norm_eps = fields.take("rms_norm_eps", float, 1e-6)
    attn = Gqa(
        num_heads=num_heads,
        num_kv_heads=fields.take("num_key_value_heads", int, 4),
        head_width=fields.take("head_dim", int, width // num_heads),
        window=window if fields.take("use_sliding_window", bool, False) else None,
        bias=bias,
        out_bias=bias,
        qk_norm="head",
        norm_eps=norm_eps,
        **rope.read(fields, 1e4),
    )
    moe = Moe(
        num_experts=fields.take(
            "num_local_experts" if "num_local_experts" in fields else "num_experts", int, 128
        ),
        hidden=fields.take("moe_intermediate_size", int, 768),
        scorer=Linear(),
        selector=sparse_layers.selector(fields, 8),
        dispatch=Local(),
    )
    dense = Dense(fields.take("intermediate_size", int, 6144))
    sparse = sparse_layers.are_sparse(fields, fields.take("num_hidden_layers", int, least=1))
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=width,
        groups=groups_of(BlockConfig(attn, moe if is_sparse else dense) for is_sparse in sparse),
        tied=fields.take("tie_word_embeddings", bool, False),
        norm_eps=norm_eps,
    )


def write(m: ModelConfig) -> dict:
    parts = sparse_layers.parts(m, NAME)
    attn = parts.attn
    return sparse_layers.write(m, parts) | {
        "attention_bias": attn.bias,
        "use_sliding_window": attn.window is not None,
        "sliding_window": attn.window,
        "rope_parameters": rope.write(attn.rope_theta, attn.rope_scaling),
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    return TensorMap(turns.once(m), sparse_layers.layer, turns.ignored(m))


FAMILY = Family(NAME, "Qwen3MoeForCausalLM", read, write, tensor_map)
