"""Mixtral in Hugging Face transformers (version 5 and later: the experts of a layer are one tensor).

Mixtral of Experts (Jiang et al. 2024, arXiv 2401.04088). Linear layers keep their weight as [out, in] there,
and the first half of `gate_up_proj` is what passes the SiLU.
"""

from collections.abc import Mapping

import numpy as np

from moejax import records
from moejax import specs as sp
from moejax.config import require
from moejax.interop.hf.tensor_map import TensorMap, Tensors, Turn
from moejax.model import block as one_block
from moejax.model import forward as decoder

ONCE = (Turn("model.embed_tokens.weight", ("embed",), "VD->VD"), Turn("model.norm.weight", ("norm",), "D->D"))
UNTIED = (Turn("lm_head.weight", ("unembed",), "VD->VD"),)
PER_LAYER = tuple(
    Turn(f"model.layers.{{layer}}.{name}", leaves, equation, join)
    for name, leaves, equation, join in (
        ("input_layernorm.weight", ("pre",), "D->D", 0),
        ("self_attn.q_proj.weight", ("attn/q",), "DHA->(HA)D", 0),
        ("self_attn.k_proj.weight", ("attn/k",), "DGA->(GA)D", 0),
        ("self_attn.v_proj.weight", ("attn/v",), "DGA->(GA)D", 0),
        ("self_attn.o_proj.weight", ("attn/o",), "HAD->D(HA)", 0),
        ("post_attention_layernorm.weight", ("post",), "D->D", 0),
        ("mlp.gate.weight", ("ffn/score/w",), "DE->ED", 0),
        ("mlp.experts.gate_up_proj", ("ffn/experts/gate", "ffn/experts/up"), "EDF->EFD", 1),
        ("mlp.experts.down_proj", ("ffn/experts/down",), "EFD->EDF", 0),
    )
)
# Settings of a block that Mixtral does not leave open.
FIXED = {"ffn.scorer.activation": "softmax", "ffn.selector.renormalise": True, "ffn.selector.scale": 1.0}


def to_hf(params, m) -> Tensors:
    """The state dict of a MixtralForCausalLM with these weights; a tied unembedding is not in it.

    Raises:
      UsageError: the model `m` is not a Mixtral.
    """
    hf_config(m)
    return _map(m).forth(params, m)


def from_hf(tensors: Mapping[str, np.ndarray], m):
    """Numpy parameters of the model `m` from the state dict of a MixtralForCausalLM.

    Raises:
      UsageError: the model `m` is not a Mixtral.
      CheckpointError: a tensor is missing, unknown, or of another shape or dtype.
    """
    hf_config(m)
    own = {name: value for name, value in tensors.items() if name != "lm_head.weight" or not m.tied}
    return _map(m).back(own, decoder.specs(m), m)


def hf_config(m) -> dict:
    """Arguments of `transformers.MixtralConfig` for the model `m`, without what only runs set.

    Raises:
      UsageError: the model `m` is not a Mixtral.
    """
    blocks = {block for group in m.groups for block in group.blocks}
    require(len(blocks) == 1, f"model.groups holds {len(blocks)} kinds of blocks; a Mixtral has one")
    block = blocks.pop()
    found = records.flatten(block)
    for path, wanted in FIXED.items():
        require(
            found.get(path) == wanted,
            f"model.groups[].blocks[].{path} is {found.get(path, 'absent')}; a Mixtral has {wanted!r}",
        )
    leaves = {leaf for turn in PER_LAYER for leaf in turn.leaves}
    declared = {path for path, _ in sp.leaves(one_block.specs(m, block))}
    strange = sorted(declared ^ leaves)
    require(not strange, f"parameters {strange} of a block are not those of a Mixtral")
    return {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": block.attn.num_heads,
        "num_key_value_heads": block.attn.num_kv_heads,
        "head_dim": block.attn.head_width,
        "sliding_window": block.attn.window,
        "rope_parameters": {"rope_type": "default", "rope_theta": block.attn.rope_theta},
        "num_local_experts": block.ffn.num_experts,
        "num_experts_per_tok": block.ffn.selector.k,
        "intermediate_size": block.ffn.hidden,
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
    }


def _map(m) -> TensorMap:
    return TensorMap(ONCE + (() if m.tied else UNTIED), PER_LAYER)
