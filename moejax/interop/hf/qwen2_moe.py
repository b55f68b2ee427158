"""Qwen2-MoE and Qwen1.5-MoE: Qwen2 Technical Report (Yang et al. 2024, arXiv 2407.10671)."""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig
from moejax.dispatch.local import Local
from moejax.ffn.dense import Dense
from moejax.ffn.moe import Moe
from moejax.interop.hf import rope, sparse_layers, turns, windows
from moejax.interop.hf.family import Family, groups_of, kind
from moejax.interop.hf.tensor_map import TensorMap
from moejax.routers.score.linear import Linear

NAME = "qwen2_moe"


def read(fields) -> ModelConfig:
    fields.fixed("hidden_act", "silu")
    fields.fixed("attention_dropout", 0.0)
    width, num_heads = fields.take("hidden_size", int), fields.take("num_attention_heads", int, least=1)
    num_layers = fields.take("num_hidden_layers", int, least=1)
    attention = {
        "num_heads": num_heads,
        "num_kv_heads": fields.take("num_key_value_heads", int, 16),
        "head_width": fields.take("head_dim", int, width // num_heads),
        "bias": fields.take("qkv_bias", bool, True),
        **rope.read(fields, 1e4),
    }
    moe = Moe(
        num_experts=fields.take("num_experts", int, 60),
        hidden=fields.take("moe_intermediate_size", int, 1408),
        scorer=Linear(),
        selector=sparse_layers.selector(fields, 4),
        dispatch=Local(),
        shared_expert=Dense(fields.take("shared_expert_intermediate_size", int, 5632)),
        shared_gate=True,
    )
    dense = Dense(fields.take("intermediate_size", int, 5632))
    kinds = zip(_windows(fields, num_layers), sparse_layers.are_sparse(fields, num_layers), strict=True)
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=width,
        groups=groups_of(
            BlockConfig(Gqa(**attention, window=window), moe if is_sparse else dense)
            for window, is_sparse in kinds
        ),
        tied=fields.take("tie_word_embeddings", bool, False),
        norm_eps=fields.take("rms_norm_eps", float, 1e-6),
    )


def _windows(fields, num_layers: int) -> list[int | None]:
    """The window of every layer; a file that lists no layers has one in every second of the first."""
    used, window = fields.take("use_sliding_window", bool, False), fields.take("sliding_window", int, 4096)
    end = fields.take("max_window_layers", int, 28)
    slides = lambda layer: used and layer < end and layer % 2 == 0
    return windows.read(fields, num_layers, window if used else None, slides)


def write(m: ModelConfig) -> dict:
    parts, found = sparse_layers.parts(m, NAME), windows.write(m)
    return {
        **sparse_layers.write(m, parts),
        **found,
        "use_sliding_window": found["sliding_window"] is not None,
        "qkv_bias": parts.attn.bias,
        "rope_parameters": rope.write(parts.attn.rope_theta, parts.attn.rope_scaling),
        "shared_expert_intermediate_size": kind(parts.moe.shared_expert, Dense, NAME).hidden,
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    def layer(block):
        if isinstance(block.ffn, Dense):
            return sparse_layers.layer(block)
        return (
            *sparse_layers.layer(block),
            *turns.mlp(block.ffn.shared_expert, "mlp.shared_expert", "ffn/shared"),
            turns.layer("mlp.shared_expert_gate.weight", "ffn/shared_gate", "D->()D"),
        )

    return TensorMap(turns.once(m), layer, turns.ignored(m))


FAMILY = Family(NAME, "Qwen2MoeForCausalLM", read, write, tensor_map)
