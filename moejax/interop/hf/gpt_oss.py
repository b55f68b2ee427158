"""gpt-oss (OpenAI 2025, arXiv 2508.10925)."""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig, require
from moejax.dispatch.local import Local
from moejax.ffn.moe import Moe
from moejax.interop import mxfp4
from moejax.interop.hf import rope, turns, windows
from moejax.interop.hf.family import Family, groups_of, kind
from moejax.interop.hf.tensor_map import TensorMap, Turn, layers
from moejax.ops.experts import ALPHA, LIMIT
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK


def read(fields) -> ModelConfig:
    fields.fixed("hidden_act", "silu")
    fields.fixed("attention_dropout", 0.0)
    _check_packing(fields)
    num_layers = fields.take("num_hidden_layers", int, least=1)
    experts = _read_experts(fields)
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=fields.take("hidden_size", int),
        groups=groups_of(BlockConfig(attn, experts) for attn in _read_attention(fields, num_layers)),
        tied=fields.take("tie_word_embeddings", bool, False),
        norm_eps=fields.take("rms_norm_eps", float, 1e-5),
    )


def _check_packing(fields) -> None:
    """Which tensors are packed is seen by their names."""
    packing = fields.part("quantization_config")
    if packing is not None:
        packing.choose("quant_method", {"mxfp4": None})
        packing.unused("modules_to_not_convert", "dequantize", "use_kernels")
        packing.done()


def _read_attention(fields, num_layers: int) -> list[Gqa]:
    """Of every layer; every other one has a window."""
    require(
        "rope_parameters" in fields or "rope_scaling" in fields,
        f"{fields.where} has neither rope_parameters nor rope_scaling, which this family needs; add them",
    )
    positions = rope.read(fields, 15e4)
    fields.fixed("initial_context_length", getattr(positions["rope_scaling"], "original", None))
    bias = fields.take("attention_bias", bool, True)
    shared = {
        "num_heads": fields.take("num_attention_heads", int, 64),
        "num_kv_heads": fields.take("num_key_value_heads", int, 8),
        "head_width": fields.take("head_dim", int, 64),
        "bias": bias,
        "out_bias": bias,
        "sinks": True,
        **positions,
    }
    window = fields.take("sliding_window", int, 128, least=1)
    found = windows.read(fields, num_layers, window, lambda layer: layer % 2 == 0)
    return [Gqa(window=window, **shared) for window in found]


def _read_experts(fields) -> Moe:
    k = fields.take("num_experts_per_tok", int, 4)
    fields.fixed("experts_per_token", k)
    fields.fixed("swiglu_alpha", ALPHA)
    fields.fixed("swiglu_limit", LIMIT)
    return Moe(
        num_experts=fields.take("num_local_experts", int, 128),
        hidden=fields.take("intermediate_size", int),
        scorer=Linear(bias=True),
        selector=TopK(k),
        dispatch=Local(),
        activation="clamped_swiglu",
        bias=True,
    )


def write(m: ModelConfig) -> dict:
    attn, *_ = [kind(block.attn, Gqa, "gpt_oss") for _, block, _ in layers(m)]
    ffn = kind(layers(m)[0][1].ffn, Moe, "gpt_oss")
    found = windows.write(m)
    return found | {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": attn.num_heads,
        "num_key_value_heads": attn.num_kv_heads,
        "head_dim": attn.head_width,
        "attention_bias": attn.bias,
        "sliding_window": found["sliding_window"] or 128,  # null is no window to transformers
        "rope_parameters": rope.write(attn.rope_theta, attn.rope_scaling),
        "num_local_experts": ffn.num_experts,
        "num_experts_per_tok": kind(ffn.selector, TopK, "gpt_oss").k,
        "intermediate_size": ffn.hidden,
        "hidden_act": "silu",
        "swiglu_limit": LIMIT,
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    def layer(block):
        return (
            *turns.norms(),
            *turns.attention(block.attn),
            turns.layer("self_attn.sinks", "attn/sink", "H->H"),
            turns.layer("mlp.router.weight", "ffn/score/w", "DE->ED"),
            turns.layer("mlp.router.bias", "ffn/score/b", "E->E"),
            _both("gate_up_proj", "", "EDF->EDF", join=2),
            _both("gate_up_proj_bias", "_bias", "EF->EF", join=1),
            turns.layer("mlp.experts.down_proj", "ffn/experts/down", "EFD->EFD"),
            turns.layer("mlp.experts.down_proj_bias", "ffn/down_bias", "ED->ED"),
        )

    return TensorMap(turns.once(m), layer, turns.ignored(m))


def _both(name: str, ours: str, equation: str, join: int) -> Turn:
    """Gate and up as one tensor, whose columns they take in turns."""
    leaves = (f"ffn/experts/gate{ours}", f"ffn/experts/up{ours}")
    return Turn(f"model.layers.{{layer}}.mlp.experts.{name}", leaves, equation, join, interleaved=True)


FAMILY = Family("gpt_oss", "GptOssForCausalLM", read, write, tensor_map, view=mxfp4.unpacked)
