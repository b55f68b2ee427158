"""Granite-MoE of IBM: a Mixtral whose embeddings, branches, scores and logits have factors."""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig
from moejax.dispatch.local import Local
from moejax.ffn.moe import Moe
from moejax.interop.hf import rope, turns
from moejax.interop.hf.family import Family, groups_of, kind, only_block
from moejax.interop.hf.tensor_map import TensorMap, Turn
from moejax.interop.hf.written import solved
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK

EXPERTS = "model.layers.{layer}.block_sparse_moe"


def read(fields) -> ModelConfig:
    fields.fixed("hidden_act", "silu")
    fields.fixed("attention_dropout", 0.0)
    width, num_heads = fields.take("hidden_size", int), fields.take("num_attention_heads", int, least=1)
    bias = fields.take("attention_bias", bool, False)
    head_width = fields.take("head_dim", int, width // num_heads)
    scale = fields.take("attention_multiplier", float, 1.0)
    attn = Gqa(
        num_heads=num_heads,
        num_kv_heads=fields.take("num_key_value_heads", int, num_heads),
        head_width=head_width,
        scale=None if scale == head_width**-0.5 else scale,
        bias=bias,
        out_bias=bias,
        **rope.read(fields, 1e4),
    )
    experts = Moe(
        num_experts=fields.take("num_local_experts", int, 8),
        hidden=fields.take("intermediate_size", int),
        scorer=Linear(),
        selector=TopK(fields.take("num_experts_per_tok", int, 2)),
        dispatch=Local(),
    )
    block = BlockConfig(attn, experts, residual_scale=fields.take("residual_multiplier", float, 1.0))
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=width,
        groups=groups_of([block] * fields.take("num_hidden_layers", int, least=1)),
        tied=fields.take("tie_word_embeddings", bool, False),
        embed_scale=fields.take("embedding_multiplier", float, 1.0),
        logit_scale=1 / fields.take("logits_scaling", float, 1.0),
        norm_eps=fields.take("rms_norm_eps", float, 1e-6),
    )


def write(m: ModelConfig) -> dict:
    block = only_block(m, "granitemoe")
    attn, ffn = kind(block.attn, Gqa, "granitemoe"), kind(block.ffn, Moe, "granitemoe")
    return {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": attn.num_heads,
        "num_key_value_heads": attn.num_kv_heads,
        "head_dim": attn.head_width,
        "attention_bias": attn.bias,
        "rope_parameters": rope.write(attn.rope_theta, attn.rope_scaling),
        "num_local_experts": ffn.num_experts,
        "num_experts_per_tok": kind(ffn.selector, TopK, "granitemoe").k,
        "intermediate_size": ffn.hidden,
        "embedding_multiplier": m.embed_scale,
        "attention_multiplier": attn.head_width**-0.5 if attn.scale is None else attn.scale,
        "residual_multiplier": block.residual_scale,
        "logits_scaling": solved(1 / m.logit_scale, m.logit_scale, lambda scaling: 1 / scaling),
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
        "hidden_act": "silu",
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    def layer(block):
        gate_up = ("ffn/experts/gate", "ffn/experts/up")
        return (
            *turns.norms(),
            *turns.attention(block.attn),
            turns.layer("block_sparse_moe.router.layer.weight", "ffn/score/w", "DE->ED"),
            Turn(f"{EXPERTS}.input_linear.weight", gate_up, "EDF->EFD", join=1),
            turns.layer("block_sparse_moe.output_linear.weight", "ffn/experts/down", "EFD->EDF"),
        )

    return TensorMap(turns.once(m), layer, turns.ignored(m))


FAMILY = Family("granitemoe", "GraniteMoeForCausalLM", read, write, tensor_map)
