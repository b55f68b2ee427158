"""OpenMoE (Xue et al. 2024, arXiv 2402.01739) as its authors released it for PyTorch.

Every n-th layer has experts and after them a dense layer with a norm of its own. Attention does not divide
its scores. A gate matrix holds two gates, the linear one first. Their training and evaluation let an expert
take so many tokens of a batch and no more; here nothing is dropped, or a text would depend on its neighbours.
"""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig, require
from moejax.dispatch.local import Local
from moejax.ffn.dense import Dense
from moejax.ffn.moe import Moe
from moejax.interop.hf import turns
from moejax.interop.hf.family import Family, groups_of, kind
from moejax.interop.hf.tensor_map import TensorMap, Turn, layers
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK

NAME = "openmoe"
THETA = 10_000.0  # their code knows no other
# What their code asks for and what has no part in the function of a trained model: capacity, losses, kernels.
TRAINING = {
    "router_capacity_factor_train": 1.25,
    "router_capacity_factor_eval": 2.0,
    "router_min_capacity": 4,
    "router_drop_tks": True,
    "router_aux_loss_factor": 0.01,
    "router_z_loss_factor": 0.0001,
    "label_smoothing": 0.001,
    "z_loss_factor": 0.01,
    "enable_load_balance": False,
    "load_balance_tolerance": 0.1,
    "load_balance_beam_width": 8,
    "load_balance_group_swap_factor": 0.4,
    "enable_kernel": False,
    "enable_comm_overlap": False,
    "enable_hierarchical_alltoall": False,
}
OLDER = ("capacity_factor_train", "capacity_factor_eval", "min_capacity", "drop_tks", "expert_parallel")


def read(fields) -> ModelConfig:
    fields.unused(*TRAINING, *OLDER)
    for name, allowed in {
        "hidden_act": ("swiglu",),
        "rope_theta": (THETA,),
        "rope_scaling": (),
        "rope_parameters": ({"rope_theta": THETA, "rope_type": "default"},),
        "router_noisy_policy": (),
        "noisy_policy": (),
    }.items():
        fields.fixed(name, *allowed)
    for name in ("dropout_rate", "attention_dropout", "attention_bias", "mlp_bias"):
        fields.fixed(name, 0.0)
    for name in ("gated", "mlp_gated"):
        fields.fixed(name, True)
    width, num_heads = fields.take("hidden_size", int), fields.take("num_attention_heads", int, least=1)
    attn = Gqa(
        num_heads=num_heads,
        num_kv_heads=fields.take("num_key_value_heads", int, num_heads),
        head_width=fields.take("head_dim", int, width // num_heads),
        rope_theta=THETA,
        scale=1.0,
    )
    eps = fields.take("rms_norm_eps", float, 1e-6)
    fields.fixed("layer_norm_epsilon", eps)  # its name in older files
    return ModelConfig(
        vocab=fields.take("vocab_size", int),
        width=width,
        groups=groups_of(_read_blocks(fields, attn)),
        tied=fields.take("tie_word_embeddings", bool, False),
        norm_eps=eps,
    )


def _read_blocks(fields, attn: Gqa) -> list[BlockConfig]:
    dense = Dense(fields.take("intermediate_size", int), linear_gate=True)
    k = fields.take("topk" if "topk" in fields else "router_topk", int, 2)
    experts = Moe(
        num_experts=fields.take("num_experts", int),
        hidden=dense.hidden,
        scorer=Linear(),
        selector=TopK(k, renormalise=False),
        dispatch=Local(),
        linear_gate=True,
    )
    sparse = BlockConfig(attn, experts, after=dense)
    interval = fields.take("moe_layer_interval", int, least=1)
    num_layers = fields.take("num_hidden_layers", int, least=1)
    return [BlockConfig(attn, dense) if (i + 1) % interval else sparse for i in range(num_layers)]


def write(m: ModelConfig) -> dict:
    blocks = [block for _, block, _ in layers(m)]
    sparse = [i for i, block in enumerate(blocks) if isinstance(block.ffn, Moe)]
    require(len(sparse) > 0, f"no layer has experts; an {NAME} has them in every n-th layer")
    attn, experts = kind(blocks[0].attn, Gqa, NAME), blocks[sparse[0]].ffn
    return {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": attn.num_heads,
        "num_key_value_heads": attn.num_kv_heads,
        "head_dim": attn.head_width,
        "rope_theta": THETA,
        "intermediate_size": experts.hidden,
        "num_experts": experts.num_experts,
        "router_topk": kind(experts.selector, TopK, NAME).k,
        "moe_layer_interval": sparse[0] + 1,
        "mlp_gated": True,
        "hidden_act": "swiglu",
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
        **TRAINING,
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    def layer(block):
        shared = (*turns.norms(), *turns.attention(block.attn))
        if not isinstance(block.ffn, Moe):
            return (*shared, *_dense("mlp", "ffn"))
        return (
            *shared,
            turns.layer("mlp.gate_weight", "ffn/score/w", "DE->ED"),
            _layer("mlp.experts.wi_gate", ("ffn/experts/linear_gate", "ffn/experts/gate"), "EDF->EDF", 2),
            turns.layer("mlp.experts.wi_up", "ffn/experts/up", "EDF->EDF"),
            turns.layer("mlp.experts.wo", "ffn/experts/down", "EFD->EFD"),
            turns.layer("pre_extra_mlp_layernorm.weight", "pre_after", "D->D"),
            *_dense("extra_mlp", "after"),
        )

    return TensorMap(turns.once(m), layer, turns.ignored(m))


def _dense(theirs: str, ours: str) -> tuple[Turn, ...]:
    return (
        _layer(f"{theirs}.gate_proj.weight", (f"{ours}/linear_gate", f"{ours}/gate"), "DF->FD", 0),
        turns.layer(f"{theirs}.up_proj.weight", f"{ours}/up", "DF->FD"),
        turns.layer(f"{theirs}.down_proj.weight", f"{ours}/down", "FD->DF"),
    )


def _layer(name: str, leaves: tuple[str, ...], equation: str, join: int) -> Turn:
    return Turn(f"model.layers.{{layer}}.{name}", leaves, equation, join)


FAMILY = Family(NAME, "OpenMoeForCausalLM", read, write, tensor_map)
