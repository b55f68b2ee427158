"""OpenMoE at the size of a small machine: routers that follow token ids, fix early and drop late tokens.

    python train.py --config=configs/openmoe.py --workdir=runs/openmoe

An Early Effort on Open Mixture-of-Experts Language Models (Xue et al. 2024, arXiv 2402.01739): every second
block has 16 experts beside a dense layer. Each token wants two and weighs them by their raw probability; in a
row of T tokens an expert has 1.25 T / E slots, first choices before second ones. So even at perfect balance
37.5% of the choices are dropped, the second choices of late tokens. Text is generated without capacity.

Differs from the paper: attention, then experts and the dense layer side by side (the paper's eq. 4; its code
has them one after the other); SwiGLU instead of a gate of three parts; a group is one row; AdamW instead of
Adafactor; plain next-token prediction.
"""

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, DataConfig, Group, ModelConfig, OptimConfig, Run, TrainConfig
from moejax.dispatch.local import Local
from moejax.ffn.dense import Dense
from moejax.ffn.moe import Moe
from moejax.losses.balance import SequenceBalance
from moejax.losses.next_token import NextToken
from moejax.losses.z_loss import RouterZ
from moejax.routers.score.linear import Linear
from moejax.routers.select.capacity import Capacity
from moejax.routers.select.top_k import TopK

# The balance loss is 2 at perfect balance in the paper and 1 here, so its weight is twice 0.01.
LOSSES = (NextToken(), SequenceBalance(weight=2e-2), RouterZ(weight=1e-4))


def model(vocab: int, attn: Gqa, num_experts: int, hidden: int, layers: int) -> ModelConfig:
    """Dense and mixed blocks in turn."""
    selector = Capacity(TopK(2, renormalise=False), factor=1.25, group="row", rule="openmoe")
    moe = Moe(num_experts, hidden, Linear(), selector, Local(), shared_expert=Dense(hidden))
    blocks = (BlockConfig(attn, Dense(hidden)), BlockConfig(attn, moe))
    return ModelConfig(vocab, attn.num_heads * attn.head_width, (Group(blocks, layers // 2),))


def config() -> Run:
    attn = Gqa(num_heads=4, num_kv_heads=4, head_width=32)
    return Run(
        name="openmoe",
        model=model(4096, attn, num_experts=16, hidden=256, layers=4),
        train=TrainConfig(
            steps=3000,
            batch_rows=8,
            seq_len=256,
            losses=LOSSES,
            optim=OptimConfig(learning_rate=3e-3, warmup_steps=100),
            log_every=25,
        ),
    )


def tiny() -> Run:
    """Two layers and bytes as tokens; seconds on a core."""
    attn = Gqa(num_heads=2, num_kv_heads=2, head_width=16)
    return Run(
        name="openmoe_tiny",
        model=model(272, attn, num_experts=4, hidden=32, layers=2),
        train=TrainConfig(
            steps=200,
            batch_rows=8,
            seq_len=64,
            losses=LOSSES,
            optim=OptimConfig(learning_rate=1e-2, warmup_steps=10),
        ),
        data=DataConfig(tokenizer="bytes"),
    )
