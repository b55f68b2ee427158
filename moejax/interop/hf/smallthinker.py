"""SmallThinker (Song et al. 2025, arXiv 2507.20984): experts chosen before attention, layers of two kinds.

Each layer has rotary positions or none, and a window or none; the 4B model turns positions in every layer and
has no window, the 21B model has a layer without either after every three with both.
"""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig, require
from moejax.dispatch.local import Local
from moejax.ffn.moe import Moe
from moejax.interop.hf import rope, turns, written
from moejax.interop.hf.family import Family, groups_of, kind
from moejax.interop.hf.tensor_map import TensorMap, layers
from moejax.routers.score.pre_attention import PreAttention
from moejax.routers.select.top_k import TopK

NAME, SOFTMAX = "smallthinker", "moe_primary_router_apply_softmax"


def read(fields) -> ModelConfig:
    fields.fixed("attention_dropout", 0.0)
    fields.fixed("norm_topk_prob", True)
    fields.unused("model_name", "tokenizer_class")
    fields.unused("max_length", "temperature", "top_p", "repetition_penalty")  # how text is drawn
    fields.unused("sliding_window", "sliding_window_pattern")  # copies for another server
    _refuse_what_was_never_released(fields)
    experts = Moe(
        num_experts=fields.take("moe_num_primary_experts", int, 32),
        hidden=fields.take("moe_ffn_hidden_size", int, 768),
        scorer=PreAttention("softmax" if fields.take(SOFTMAX, bool, False) else "sigmoid"),
        selector=TopK(fields.take("moe_num_active_primary_experts", int, 4)),
        dispatch=Local(),
        activation="relu",
    )
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=fields.take("hidden_size", int),
        groups=groups_of(BlockConfig(attn, experts) for attn in _read_attention(fields)),
        tied=fields.take("tie_word_embeddings", bool, True),
        norm_eps=fields.take("rms_norm_eps", float, 1e-6),
    )


def _refuse_what_was_never_released(fields) -> None:
    """Parts that earlier code of this family provided for."""
    for name in ("use_qk_norm", "moe_enable_secondary_experts", "profile_sparsity"):
        fields.fixed(name, False)
    for name in ("moe_shared_primary_experts", "moe_num_secondary_experts", "moe_secondary_expert_size"):
        fields.fixed(name, 0)
    fields.fixed("moe_enable_early_router", True)
    fields.unused("moe_layer_layout", "dense_ffn_hidden_size")  # their code made every layer sparse
    fields.unused("num_experts_per_tok", "moe_intermediate_size")  # copies under other names


def _read_attention(fields) -> list[Gqa]:
    """Of every layer."""
    num_layers = fields.take("num_hidden_layers", int, 32, least=1)
    turned = _layout(fields, "rope_layout", 1, num_layers)
    windowed = _layout(fields, "sliding_window_layout", 0, num_layers)
    positions = rope.read(fields, 1e6)
    window = fields.take("sliding_window_size", int, 4096, least=1)
    heads = {
        "num_heads": fields.take("num_attention_heads", int, 12),
        "num_kv_heads": fields.take("num_key_value_heads", int, 2),
        "head_width": fields.take("head_dim", int, 128),
    }
    none = {"rope_theta": None}
    return [
        Gqa(**heads, **(positions if turn else none), window=window if near else None)
        for turn, near in zip(turned, windowed, strict=True)
    ]


def _layout(fields, name: str, usual: int, num_layers: int) -> list[int]:
    """One 0 or 1 per layer."""
    found = fields.take(name, list, [usual] * num_layers)
    require(
        len(found) == num_layers and all(flag in (0, 1) for flag in found),
        f"{fields.where}: {name} has {len(found)} entries; it needs a 0 or a 1 for each of the "
        f"num_hidden_layers={num_layers} layers",
    )
    return found


def write(m: ModelConfig) -> dict:
    blocks = [block for _, block, _ in layers(m)]
    attns = [kind(block.attn, Gqa, NAME) for block in blocks]
    ffn = kind(blocks[0].ffn, Moe, NAME)
    turned = next((attn for attn in attns if attn.rope_theta is not None), Gqa(1, 1, 2))
    window = next((attn.window for attn in attns if attn.window is not None), 4096)
    return {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": attns[0].num_heads,
        "num_key_value_heads": attns[0].num_kv_heads,
        "head_dim": attns[0].head_width,
        "rope_layout": [int(attn.rope_theta is not None) for attn in attns],
        **written.positions(turned),
        "sliding_window_layout": [int(attn.window is not None) for attn in attns],
        "sliding_window_size": window,
        "moe_num_primary_experts": ffn.num_experts,
        "moe_num_active_primary_experts": kind(ffn.selector, TopK, NAME).k,
        "moe_ffn_hidden_size": ffn.hidden,
        SOFTMAX: kind(ffn.scorer, PreAttention, NAME).activation == "softmax",
        "norm_topk_prob": True,
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    def layer(block):
        return (
            *turns.norms(),
            *turns.attention(block.attn),
            turns.layer("block_sparse_moe.primary_router.weight", "ffn/score/w", "DE->ED"),
            *turns.experts("block_sparse_moe.experts.{expert}", gate="gate", up="up", down="down"),
        )

    return TensorMap(turns.once(m), layer, turns.ignored(m))


FAMILY = Family(NAME, "SmallThinkerForCausalLM", read, write, tensor_map)
