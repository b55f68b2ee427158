"""Phi-3.5-MoE: Phi-3 Technical Report (Abdin et al. 2024, arXiv 2404.14219)."""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig
from moejax.dispatch.local import Local
from moejax.ffn.moe import Moe
from moejax.interop.hf import rope, turns
from moejax.interop.hf.family import Family, groups_of, kind, only_block
from moejax.interop.hf.tensor_map import TensorMap, Turn
from moejax.ops.rope import LongRope
from moejax.routers.score.linear import Linear
from moejax.routers.select.sparse_mixer import SparseMixer

NAME = "phimoe"


def read(fields) -> ModelConfig:
    fields.fixed("hidden_act", "silu")
    fields.fixed("attention_dropout", 0.0)
    fields.fixed("hidden_dropout", 0.0)
    fields.unused("input_jitter_noise")  # in training alone
    width, num_heads = fields.take("hidden_size", int), fields.take("num_attention_heads", int, least=1)
    bias = fields.take("attention_bias", bool, False)
    attn = Gqa(
        num_heads=num_heads,
        num_kv_heads=fields.take("num_key_value_heads", int, 8),
        head_width=fields.take("head_dim", int, width // num_heads),
        window=fields.take("sliding_window", int, None, least=1),
        bias=bias,
        out_bias=bias,
        **rope.read(fields, 1e6),
    )
    jitter = fields.take("router_jitter_noise", float, 0.01)
    moe = Moe(
        num_experts=fields.take("num_local_experts", int, 16),
        hidden=fields.take("intermediate_size", int),
        scorer=Linear("identity"),
        selector=SparseMixer(fields.take("num_experts_per_tok", int, 2, least=2, most=2), jitter),
        dispatch=Local(),
    )
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=width,
        groups=groups_of([BlockConfig(attn, moe)] * fields.take("num_hidden_layers", int, least=1)),
        tied=fields.take("tie_word_embeddings", bool, False),
        unembed_bias=fields.take("lm_head_bias", bool, False),
        norm="layer",
        norm_eps=fields.take("rms_norm_eps", float, 1e-5),
    )


def write(m: ModelConfig) -> dict:
    block = only_block(m, NAME)
    attn, moe = kind(block.attn, Gqa, NAME), kind(block.ffn, Moe, NAME)
    selector = kind(moe.selector, SparseMixer, NAME)
    return {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": attn.num_heads,
        "num_key_value_heads": attn.num_kv_heads,
        "head_dim": attn.head_width,
        "attention_bias": attn.bias,
        "sliding_window": attn.window,
        "rope_parameters": _positions(attn),
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": selector.k,
        "router_jitter_noise": selector.jitter,
        "intermediate_size": moe.hidden,
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
        "lm_head_bias": m.unembed_bias,
        "hidden_act": "silu",
    }


def _positions(attn: Gqa) -> dict:
    """`rope_parameters`, with the gains under the names that this family has for them."""
    found, scaling = rope.write(attn.rope_theta, attn.rope_scaling), attn.rope_scaling
    if isinstance(scaling, LongRope):
        found |= {"short_mscale": scaling.short_gain, "long_mscale": scaling.long_gain}
    return found


def tensor_map(m: ModelConfig) -> TensorMap:
    ends = [turns.EMBED, *_norm("model.norm", "norm")]
    ends += [] if m.tied else [turns.UNEMBED]
    ends += [Turn("lm_head.bias", ("unembed_bias",), "V->V")] if m.unembed_bias else []

    def layer(block):
        return (
            *_norm("model.layers.{layer}.input_layernorm", "pre"),
            *_norm("model.layers.{layer}.post_attention_layernorm", "post"),
            *turns.attention(block.attn),
            turns.layer("block_sparse_moe.gate.weight", "ffn/score/w", "DE->ED"),
            *turns.experts("block_sparse_moe.experts.{expert}", gate="w1", up="w3", down="w2"),
        )

    return TensorMap(tuple(ends), layer, turns.ignored(m))


def _norm(name: str, ours: str) -> tuple[Turn, Turn]:
    return (
        Turn(f"{name}.weight", (f"{ours}/scale",), "D->D"),
        Turn(f"{name}.bias", (f"{ours}/bias",), "D->D"),
    )


FAMILY = Family(NAME, "PhimoeForCausalLM", read, write, tensor_map)
