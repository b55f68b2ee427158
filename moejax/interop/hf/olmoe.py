"""OLMoE: Open Mixture-of-Experts Language Models (Muennighoff et al. 2024, arXiv 2409.02060)."""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig
from moejax.dispatch.local import Local
from moejax.ffn.moe import Moe
from moejax.interop.hf import rope, sparse_layers, turns
from moejax.interop.hf.family import Family, groups_of, kind, only_block
from moejax.interop.hf.tensor_map import TensorMap
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK

NAME = "olmoe"


def read(fields) -> ModelConfig:
    fields.fixed("hidden_act", "silu")
    fields.fixed("attention_dropout", 0.0)
    width, num_heads = fields.take("hidden_size", int), fields.take("num_attention_heads", int, least=1)
    bias = fields.take("attention_bias", bool, False)
    norm_eps = fields.take("rms_norm_eps", float, 1e-5)
    attn = Gqa(
        num_heads=num_heads,
        num_kv_heads=fields.take("num_key_value_heads", int, num_heads),
        head_width=width // num_heads,
        bias=bias,
        out_bias=bias,
        qk_norm="all",
        norm_eps=norm_eps,
        clip=fields.take("clip_qkv", float, None),
        **rope.read(fields, 1e4),
    )
    moe = Moe(
        num_experts=fields.take(
            "num_local_experts" if "num_local_experts" in fields else "num_experts", int, 64
        ),
        hidden=fields.take("intermediate_size", int),
        scorer=Linear(),
        selector=sparse_layers.selector(fields, 8),
        dispatch=Local(),
    )
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=width,
        groups=groups_of([BlockConfig(attn, moe)] * fields.take("num_hidden_layers", int, least=1)),
        tied=fields.take("tie_word_embeddings", bool, False),
        norm_eps=norm_eps,
    )


def write(m: ModelConfig) -> dict:
    block = only_block(m, NAME)
    attn, moe = kind(block.attn, Gqa, NAME), kind(block.ffn, Moe, NAME)
    selector = kind(moe.selector, TopK, NAME)
    return {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": attn.num_heads,
        "num_key_value_heads": attn.num_kv_heads,
        "attention_bias": attn.bias,
        "clip_qkv": attn.clip,
        "rope_parameters": rope.write(attn.rope_theta, attn.rope_scaling),
        "num_experts": moe.num_experts,
        "num_experts_per_tok": selector.k,
        "norm_topk_prob": selector.renormalise,
        "intermediate_size": moe.hidden,
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
        "hidden_act": "silu",
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    return TensorMap(turns.once(m), sparse_layers.layer, turns.ignored(m))


FAMILY = Family(NAME, "OlmoeForCausalLM", read, write, tensor_map)
