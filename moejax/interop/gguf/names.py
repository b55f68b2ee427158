"""Names of tensors: llama.cpp's and the hub's, in one table per architecture.

A value stands for `model.layers.{layer}.VALUE.weight`, a key for `blk.{layer}.KEY.weight`; `{expert}` in a
value means that the tensor there holds every expert, and the hub's file one tensor for each.
"""

ONCE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
POST = {"ffn_norm": "post_attention_layernorm"}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}

# By the hub's model_type.
PER_LAYER = {
    "llama": ATTENTION | POST | MLP,
    "mixtral": ATTENTION
    | POST
    | {
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": "block_sparse_moe.experts.{expert}.w1",
        "ffn_up_exps": "block_sparse_moe.experts.{expert}.w3",
        "ffn_down_exps": "block_sparse_moe.experts.{expert}.w2",
    },
    "qwen3": ATTENTION | HEAD_NORMS | POST | MLP,
    "qwen3_moe": ATTENTION
    | HEAD_NORMS
    | POST
    | {
        "ffn_gate_inp": "mlp.gate",
        "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
        "ffn_up_exps": "mlp.experts.{expert}.up_proj",
        "ffn_down_exps": "mlp.experts.{expert}.down_proj",
    },
    "gemma3_text": ATTENTION
    | HEAD_NORMS
    | MLP
    | {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
# Products whose rows are kept in another order, and the models of which that is so: the two halves of a head,
# which rotate together, take turns in the file.
ROTARY_PAIRS = frozenset({"attn_q", "attn_k"})
PAIRED = frozenset({"llama", "mixtral"})
