"""Mixtral of Experts (Jiang et al. 2024, arXiv 2401.04088)."""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig
from moejax.dispatch.local import Local
from moejax.ffn.moe import Moe
from moejax.interop.hf import rope, turns
from moejax.interop.hf.family import Family, groups_of, kind, only_block
from moejax.interop.hf.tensor_map import TensorMap
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK


def read(fields) -> ModelConfig:
    fields.fixed("hidden_act", "silu")
    fields.fixed("attention_dropout", 0.0)
    fields.fixed("router_jitter_noise", 0.0)
    width, num_heads = fields.take("hidden_size", int), fields.take("num_attention_heads", int)
    attn = Gqa(
        num_heads=num_heads,
        num_kv_heads=fields.take("num_key_value_heads", int, 8),
        head_width=fields.take("head_dim", int, width // num_heads),
        window=fields.take("sliding_window", int, None, least=1),
        **rope.read(fields, 1e6),
    )
    experts = Moe(
        num_experts=fields.take("num_local_experts", int, 8),
        hidden=fields.take("intermediate_size", int),
        scorer=Linear(),
        selector=TopK(fields.take("num_experts_per_tok", int, 2)),
        dispatch=Local(),
    )
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=width,
        groups=groups_of([BlockConfig(attn, experts)] * fields.take("num_hidden_layers", int, least=1)),
        tied=fields.take("tie_word_embeddings", bool, False),
        norm_eps=fields.take("rms_norm_eps", float, 1e-5),
    )


def write(m: ModelConfig) -> dict:
    block = only_block(m, "mixtral")
    attn, ffn = kind(block.attn, Gqa, "mixtral"), kind(block.ffn, Moe, "mixtral")
    return {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": attn.num_heads,
        "num_key_value_heads": attn.num_kv_heads,
        "head_dim": attn.head_width,
        "sliding_window": attn.window,
        "rope_parameters": rope.write(attn.rope_theta, attn.rope_scaling),
        "num_local_experts": ffn.num_experts,
        "num_experts_per_tok": kind(ffn.selector, TopK, "mixtral").k,
        "intermediate_size": ffn.hidden,
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
        "hidden_act": "silu",
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    def layer(block):
        return (
            *turns.norms(),
            *turns.attention(block.attn),
            turns.layer("block_sparse_moe.gate.weight", "ffn/score/w", "DE->ED"),
            *turns.experts("block_sparse_moe.experts.{expert}", gate="w1", up="w3", down="w2"),
        )

    return TensorMap(turns.once(m), layer, turns.ignored(m))


FAMILY = Family("mixtral", "MixtralForCausalLM", read, write, tensor_map)
