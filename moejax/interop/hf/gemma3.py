"""Gemma 3, text only (Gemma Team 2025, arXiv 2503.19786)."""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig
from moejax.ffn.dense import Dense
from moejax.interop.hf import rope, turns, windows
from moejax.interop.hf.family import Family, groups_of, kind
from moejax.interop.hf.fields import Fields
from moejax.interop.hf.tensor_map import TensorMap, layers

# Layers with a window have positions of their own; in older files these are the names of theta.
THETAS = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}


def read(fields) -> ModelConfig:
    fields.fixed("attention_dropout", 0.0)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        fields.fixed(name)  # Gemma 2 has them
    fields.fixed("use_bidirectional_attention", False)
    num_layers, width = fields.take("num_hidden_layers", int, least=1), fields.take("hidden_size", int)
    norm_eps = fields.take("rms_norm_eps", float, 1e-6)
    activation = fields.choose("hidden_activation", {"gelu_pytorch_tanh": "gelu"}, "gelu_pytorch_tanh")
    ffn = Dense(hidden=fields.take("intermediate_size", int), activation=activation)
    attentions = _read_attention(fields, num_layers, norm_eps)
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=width,
        groups=groups_of(BlockConfig(attn, ffn, post_norms=True) for attn in attentions),
        tied=fields.take("tie_word_embeddings", bool, True),
        embed_scale=width**0.5,
        norm="rms_plus_one",
        norm_eps=norm_eps,
    )


def _read_attention(fields, num_layers: int, norm_eps: float) -> list[Gqa]:
    head_width, bias = fields.take("head_dim", int, 256), fields.take("attention_bias", bool, False)
    divisor = fields.take("query_pre_attn_scalar", float, 256.0, least=1)
    shared = {
        "num_heads": fields.take("num_attention_heads", int, 8),
        "num_kv_heads": fields.take("num_key_value_heads", int, 4),
        "head_width": head_width,
        "scale": None if divisor == head_width else divisor**-0.5,
        "bias": bias,
        "out_bias": bias,
        "qk_norm": "head",
        "norm": "rms_plus_one",
        "norm_eps": norm_eps,
    }
    older = "_sliding_window_pattern" if "_sliding_window_pattern" in fields else "sliding_window_pattern"
    period = fields.take(older, int, 6, least=1)
    window = fields.take("sliding_window", int, 4096, least=1)
    found = windows.read(fields, num_layers, window, lambda layer: (layer + 1) % period != 0)
    positions = _read_positions(fields)
    return [Gqa(window=window, **positions[windows.kind(window)], **shared) for window in found]


def _read_positions(fields) -> dict[str, dict]:
    """Arguments of the attention by the kind of layer."""
    empty = lambda: Fields({}, fields.where)
    both, scaling = rope.parts(fields)
    parts = {"full_attention": scaling or empty(), "sliding_attention": empty()}
    found = {}
    for name, (older, default) in THETAS.items():
        part = parts[name] if both is None else both.part(name) or empty()
        found[name] = rope.read_part(part, fields.take(older, float, default), fields)
        part.done()
    if both is not None:
        both.done()
    return found


def write(m: ModelConfig) -> dict:
    blocks = [block for _, block, _ in layers(m)]
    ffn, attentions = kind(blocks[0].ffn, Dense, "gemma3"), [kind(b.attn, Gqa, "gemma3") for b in blocks]
    attn = attentions[0]
    defaults = {name: rope.write(theta, None) for name, (_, theta) in THETAS.items()}
    positions = {windows.kind(a.window): rope.write(a.rope_theta, a.rope_scaling) for a in attentions}
    found = windows.write(m)
    return found | {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": attn.num_heads,
        "num_key_value_heads": attn.num_kv_heads,
        "head_dim": attn.head_width,
        "query_pre_attn_scalar": attn.head_width if attn.scale is None else round(attn.scale**-2),
        "attention_bias": attn.bias,
        "sliding_window": found["sliding_window"] or 4096,  # null is no window to transformers
        "rope_parameters": defaults | positions,
        "intermediate_size": ffn.hidden,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    def layer(block):
        return (
            *turns.norms(post="pre_feedforward_layernorm"),
            turns.layer("post_attention_layernorm.weight", "attn_out", "D->D"),
            turns.layer("post_feedforward_layernorm.weight", "ffn_out", "D->D"),
            *turns.attention(block.attn),
            *turns.mlp(block.ffn),
        )

    return TensorMap(turns.once(m), layer, turns.ignored(m))


FAMILY = Family("gemma3_text", "Gemma3ForCausalLM", read, write, tensor_map)
