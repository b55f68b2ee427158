"""Tensors that many families share, under the names that Llama gave them.

Linear layers keep their weight as [out, in] there.
"""

from moejax.interop.hf.tensor_map import HEAD, TABLE, Turn

EMBED = Turn(TABLE, ("embed",), "VD->VD")
NORM = Turn("model.norm.weight", ("norm",), "D->D")
UNEMBED = Turn(HEAD, ("unembed",), "VD->VD")
ROTARY = "*.rotary_emb.inv_freq"  # a table that old files hold; it follows from the config


def once(m) -> tuple[Turn, ...]:
    """The ends of a model."""
    return (EMBED, NORM) if m.tied else (EMBED, NORM, UNEMBED)


def ignored(m) -> tuple[str, ...]:
    """Names that say nothing new; an unembedding that is the embedding table is in some files twice."""
    return (ROTARY, HEAD) if m.tied else (ROTARY,)


def norms(pre: str = "input_layernorm", post: str = "post_attention_layernorm") -> tuple[Turn, ...]:
    """The norms before attention and before the ffn."""
    return (layer(f"{pre}.weight", "pre", "D->D"), layer(f"{post}.weight", "post", "D->D"))


def attention(attn, prefix: str = "self_attn") -> tuple[Turn, ...]:
    """The products of the `Gqa` `attn`, with the biases and norms that it has."""
    found = [
        layer(f"{prefix}.q_proj.weight", "attn/q", "DHA->(HA)D"),
        layer(f"{prefix}.k_proj.weight", "attn/k", "DGA->(GA)D"),
        layer(f"{prefix}.v_proj.weight", "attn/v", "DGA->(GA)D"),
        layer(f"{prefix}.o_proj.weight", "attn/o", "HAD->D(HA)"),
    ]
    if attn.bias:
        found += [layer(f"{prefix}.{name}_proj.bias", f"attn/{name}_bias", "A->A") for name in "qkv"]
    if attn.out_bias:
        found.append(layer(f"{prefix}.o_proj.bias", "attn/o_bias", "D->D"))
    if attn.qk_norm != "none":
        found += [layer(f"{prefix}.{name}_norm.weight", f"attn/{name}_norm", "A->A") for name in "qk"]
    return tuple(found)


def mlp(ffn, prefix: str = "mlp", ours: str = "ffn") -> tuple[Turn, ...]:
    """The products of the `Dense` `ffn`, with the biases that it has; `ours` is where its parameters are."""
    products = (("gate", "DF->FD", "F->F"), ("up", "DF->FD", "F->F"), ("down", "FD->DF", "D->D"))
    found = [layer(f"{prefix}.{name}_proj.weight", f"{ours}/{name}", turn) for name, turn, _ in products]
    if ffn.bias:
        found += [
            layer(f"{prefix}.{name}_proj.bias", f"{ours}/{name}_bias", turn) for name, _, turn in products
        ]
    return tuple(found)


def experts(
    prefix: str = "mlp.experts.{expert}",
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
) -> tuple[Turn, ...]:
    """The three products of every expert."""
    return (
        layer(f"{prefix}.{gate}.weight", "ffn/experts/gate", "DF->FD"),
        layer(f"{prefix}.{up}.weight", "ffn/experts/up", "DF->FD"),
        layer(f"{prefix}.{down}.weight", "ffn/experts/down", "FD->DF"),
    )


def layer(name: str, leaf: str, equation: str) -> Turn:
    """A tensor of every layer that is one of our leaves."""
    return Turn(f"model.layers.{{layer}}.{name}", (leaf,), equation)
