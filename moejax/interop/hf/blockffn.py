"""BlockFFN (Song et al. 2025, arXiv 2507.08771) as its authors released it, in the code of MiniCPM.

As many experts act on a token as it wants; they lie side by side in one matrix each for up and down. The
scales are those of muP: of the embeddings, of what a branch adds (scale_depth / sqrt(layers)), and of the
logits (dim_model_base / width). Attention is latent up to 1.2B, grouped in the 2.8B model.
"""

import math

from moejax.attention.gqa import Gqa
from moejax.attention.mla import Mla
from moejax.config import BlockConfig, ModelConfig
from moejax.dispatch.local import Local
from moejax.ffn.moe import Moe
from moejax.interop.hf import deepseek, rope, turns
from moejax.interop.hf.family import Family, groups_of, kind, only_block
from moejax.interop.hf.tensor_map import TensorMap
from moejax.interop.hf.written import positions, solved
from moejax.routers.score.linear import Linear
from moejax.routers.select.relu_norm import ReluNorm

NAME = "minicpm"
ACTIVATIONS = {"silu": "silu", "relu": "relu"}


def read(fields) -> ModelConfig:
    fields.fixed("attention_dropout", 0.0)
    fields.choose("ffn_type", {"block_linear": None}, "vanilla")
    fields.choose("router_act", {"relu": None}, "relu")
    fields.choose("norm_after_router", {"rms": None}, "sum")
    fields.fixed("block_implementation", "torch", "kernel")
    # Of the other kinds of ffn and of norms that their code has.
    fields.unused("intermediate_size", "ffn_gated", "norm_scale", "num_shared_experts")
    fields.unused("moe_routing_strategy", "moe_top_k", "moe_top_p")
    width, eps = fields.take("hidden_size", int), fields.take("rms_norm_eps", float, 1e-6)
    num_layers = fields.take("num_hidden_layers", int, least=1)
    num_experts = fields.take("num_experts", int, 40)
    latent = fields.choose("attention_type", {"mla": True, "vanilla": False}, "vanilla")
    attn = (_read_latent if latent else _read_grouped)(fields, width)
    experts = Moe(
        num_experts=num_experts,
        hidden=fields.take("expert_size", int, 128),
        scorer=Linear("relu"),
        selector=ReluNorm(num_experts, eps=eps),
        dispatch=Local(),
        activation=fields.choose("hidden_act", ACTIVATIONS, "silu"),
        gated=False,
    )
    residual_scale = fields.take("scale_depth", float, 1.0) / math.sqrt(num_layers)
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=width,
        groups=groups_of([BlockConfig(attn, experts, residual_scale=residual_scale)] * num_layers),
        tied=fields.take("tie_word_embeddings", bool, True),
        embed_scale=fields.take("scale_emb", float, 1.0),
        logit_scale=fields.take("dim_model_base", float, 1.0) / width,
        norm_eps=eps,
    )


def _read_grouped(fields, width: int) -> Gqa:
    fields.unused("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    num_heads, bias = fields.take("num_attention_heads", int), fields.take("attention_bias", bool, False)
    return Gqa(
        num_heads=num_heads,
        num_kv_heads=fields.take("num_key_value_heads", int, num_heads),
        head_width=width // num_heads,
        bias=bias,
        out_bias=bias,
        **rope.read(fields, 1e4),
    )


def _read_latent(fields, width: int) -> Mla:
    fields.fixed("attention_bias", False)
    fields.unused("num_key_value_heads")  # once expanded, every head has keys of its own
    num_heads = fields.take("num_attention_heads", int)
    fields.fixed("v_head_dim", width // num_heads)
    return Mla(
        num_heads=num_heads,
        kv_rank=fields.take("kv_lora_rank", int, 256),
        plain_width=fields.take("qk_nope_head_dim", int, 64),
        turned_width=fields.take("qk_rope_head_dim", int, 32),
        value_width=width // num_heads,
        q_rank=fields.take("q_lora_rank", int, 768),
        interleaved=False,
        **rope.read(fields, 1e4),
    )


def write(m: ModelConfig) -> dict:
    block = only_block(m, NAME)
    ffn, depth = kind(block.ffn, Moe, NAME), math.sqrt(m.num_layers)
    residual, logits = block.residual_scale, m.logit_scale
    return {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        **_write_attention(block.attn),
        **positions(block.attn),
        "ffn_type": "block_linear",
        "num_experts": ffn.num_experts,
        "expert_size": ffn.hidden,
        "intermediate_size": ffn.num_experts * ffn.hidden,
        "hidden_act": ffn.activation,
        "router_act": "relu",
        "norm_after_router": "rms",
        "scale_emb": m.embed_scale,
        "scale_depth": solved(residual * depth, residual, lambda scale: scale / depth),
        "dim_model_base": solved(logits * m.width, logits, lambda base: base / m.width),
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
    }


def _write_attention(attn) -> dict:
    if isinstance(attn, Mla):
        return {
            "attention_type": "mla",
            "num_attention_heads": attn.num_heads,
            "num_key_value_heads": attn.num_heads,
            "q_lora_rank": attn.q_rank,
            "kv_lora_rank": attn.kv_rank,
            "qk_nope_head_dim": attn.plain_width,
            "qk_rope_head_dim": attn.turned_width,
            "v_head_dim": attn.value_width,
        }
    attn = kind(attn, Gqa, NAME)
    return {
        "attention_type": "vanilla",
        "num_attention_heads": attn.num_heads,
        "num_key_value_heads": attn.num_kv_heads,
        "attention_bias": attn.bias,
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    def layer(block):
        latent = isinstance(block.attn, Mla)
        return (
            *turns.norms(),
            *(deepseek.attention_turns(block.attn) if latent else turns.attention(block.attn)),
            turns.layer("mlp.router_proj.weight", "ffn/score/w", "DE->ED"),
            turns.layer("mlp.router_norm.weight", "ffn/select/scale", "E->E"),
            turns.layer("mlp.up_proj", "ffn/experts/up", "EDF->(EF)D"),
            turns.layer("mlp.down_proj", "ffn/experts/down", "EFD->D(EF)"),
        )

    return TensorMap(turns.once(m), layer, turns.ignored(m))


FAMILY = Family(NAME, "MiniCPMForCausalLM", read, write, tensor_map)
