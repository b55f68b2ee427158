"""What DeepSeek's families share: latent attention, dense layers first, then experts beside shared ones."""

import itertools
from collections.abc import Callable

from moejax.attention.mla import Mla
from moejax.config import BlockConfig, ModelConfig, require
from moejax.dispatch.local import Local
from moejax.ffn.dense import Dense
from moejax.ffn.moe import Moe
from moejax.interop.hf import rope, turns
from moejax.interop.hf.family import groups_of, kind
from moejax.interop.hf.tensor_map import TensorMap, Turn, layers
from moejax.routers.score.linear import Linear


def read(fields, activation: str, read_selector: Callable, dense_layers: int, shared: int) -> ModelConfig:
    """A model of one of these families.

    Args:
      activation: of the router.
      read_selector: fields -> Selector.
      dense_layers: how many come first where the file does not say.
      shared: how many shared experts there are where the file does not say.
    """
    fields.fixed("hidden_act", "silu")
    fields.fixed("scoring_func", activation)
    fields.fixed("moe_layer_freq", 1)
    fields.unused("ep_size")  # devices that experts were spread over in training
    attn = _read_attention(fields)
    hidden = fields.take("moe_intermediate_size", int, least=1)
    experts = Moe(
        num_experts=fields.take("n_routed_experts", int),
        hidden=hidden,
        scorer=Linear(activation),
        selector=read_selector(fields),
        dispatch=Local(),
        shared_expert=Dense(hidden * fields.take("n_shared_experts", int, shared, least=1)),
    )
    num_layers = fields.take("num_hidden_layers", int, least=1)
    first = min(num_layers, fields.take("first_k_dense_replace", int, dense_layers, least=0))
    dense = Dense(fields.take("intermediate_size", int))
    ffns = [dense] * first + [experts] * (num_layers - first)
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=fields.take("hidden_size", int),
        groups=groups_of([BlockConfig(attn, ffn) for ffn in ffns]),
        tied=fields.take("tie_word_embeddings", bool, False),
        norm_eps=fields.take("rms_norm_eps", float, 1e-6),
    )


def write(m: ModelConfig, family: str) -> dict:
    """The fields that `read` takes, without those of the selector and of how positions turn."""
    blocks = [block for _, block, _ in layers(m)]
    first = list(itertools.takewhile(lambda block: isinstance(block.ffn, Dense), blocks))
    experts = kind(blocks[-1].ffn, Moe, family)
    shared = kind(experts.shared_expert, Dense, family)
    require(
        shared.hidden % experts.hidden == 0,
        f"ffn.shared_expert.hidden={shared.hidden} is no multiple of ffn.hidden={experts.hidden}, "
        f"in which a {family} counts its shared experts; choose a multiple",
    )
    return {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "first_k_dense_replace": len(first),
        "intermediate_size": first[0].ffn.hidden if first else experts.hidden,
        "n_routed_experts": experts.num_experts,
        "moe_intermediate_size": experts.hidden,
        "n_shared_experts": shared.hidden // experts.hidden,
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
        "hidden_act": "silu",
        **_write_attention(kind(blocks[0].attn, Mla, family)),
    }


def selector(m: ModelConfig):
    """The selector of the sparse layers of a model that `write` takes."""
    _, block, _ = layers(m)[-1]
    return block.ffn.selector


def tensor_map(m: ModelConfig) -> TensorMap:
    return TensorMap(turns.once(m), _turns, turns.ignored(m))


def _read_attention(fields) -> Mla:
    fields.fixed("attention_bias", False)
    fields.fixed("attention_dropout", 0.0)
    num_heads = fields.take("num_attention_heads", int)
    plain, turned = fields.take("qk_nope_head_dim", int), fields.take("qk_rope_head_dim", int)
    fields.fixed("num_key_value_heads", num_heads)  # once expanded, every head has keys of its own
    fields.fixed("qk_head_dim", plain + turned)
    fields.fixed("head_dim", turned)
    positions = fields.part("rope_parameters") or fields.part("rope_scaling")
    return Mla(
        num_heads=num_heads,
        kv_rank=fields.take("kv_lora_rank", int),
        plain_width=plain,
        turned_width=turned,
        value_width=fields.take("v_head_dim", int),
        q_rank=fields.take("q_lora_rank", int, None),
        mscale_all_dim=positions.take("mscale_all_dim", float, 0.0) if positions else 0.0,
        interleaved=fields.take("rope_interleave", bool, True),
        **rope.read(fields, 1e4),
    )


def _write_attention(attn: Mla) -> dict:
    positions = rope.write(attn.rope_theta, attn.rope_scaling)
    if attn.mscale_all_dim:
        positions["mscale_all_dim"] = attn.mscale_all_dim
    return {
        "num_attention_heads": attn.num_heads,
        "num_key_value_heads": attn.num_heads,
        "q_lora_rank": attn.q_rank,
        "kv_lora_rank": attn.kv_rank,
        "qk_nope_head_dim": attn.plain_width,
        "qk_rope_head_dim": attn.turned_width,
        "v_head_dim": attn.value_width,
        "rope_parameters": positions,
        "rope_interleave": attn.interleaved,
    }


def _turns(block: BlockConfig) -> tuple[Turn, ...]:
    return (*turns.norms(), *attention_turns(block.attn), *_ffn_turns(block.ffn))


def attention_turns(attn: Mla) -> tuple[Turn, ...]:
    """The products of latent attention."""
    if attn.q_rank is None:
        queries = (turns.layer("self_attn.q_proj.weight", "attn/q", "DHA->(HA)D"),)
    else:
        queries = (
            turns.layer("self_attn.q_a_proj.weight", "attn/q_down", "DZ->ZD"),
            turns.layer("self_attn.q_a_layernorm.weight", "attn/q_norm", "Z->Z"),
            turns.layer("self_attn.q_b_proj.weight", "attn/q_up", "ZHA->(HA)Z"),
        )
    return (
        *queries,
        turns.layer("self_attn.kv_a_proj_with_mqa.weight", "attn/kv_down", "DZ->ZD"),
        turns.layer("self_attn.kv_a_layernorm.weight", "attn/kv_norm", "Z->Z"),
        turns.layer("self_attn.kv_b_proj.weight", "attn/kv_up", "ZHA->(HA)Z"),
        turns.layer("self_attn.o_proj.weight", "attn/o", "HCD->D(HC)"),
    )


def _ffn_turns(ffn) -> tuple[Turn, ...]:
    if isinstance(ffn, Dense):
        return turns.mlp(ffn)
    correction = turns.layer("mlp.gate.e_score_correction_bias", "ffn/select/correction", "E->E")
    return (
        turns.layer("mlp.gate.weight", "ffn/score/w", "DE->ED"),
        *((correction,) if getattr(ffn.selector, "correction", False) else ()),
        *turns.experts(),
        *turns.mlp(ffn.shared_expert, "mlp.shared_experts", "ffn/shared"),
    )
