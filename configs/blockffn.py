"""BlockFFN: differentiable routing of free width whose experts stay few over a whole chunk of tokens.

    python train.py --config=configs/blockffn.py --workdir=runs/blockffn

Experts are many, narrow and without a gate (a gate destroys the router's sparsity). No balance loss. The
weight of the chunk loss is ten times the paper's 0.05 and its factor moves earlier, because the run is short.
"""

from configs import base
from moejax.attention.gqa import Gqa
from moejax.config import DataConfig, OptimConfig, Run, TrainConfig
from moejax.dispatch.local import Local
from moejax.ffn.moe import Moe
from moejax.losses.locality import ActivationLocality, ChunkSparsity
from moejax.losses.next_token import NextToken
from moejax.routers.score.linear import Linear
from moejax.routers.select.relu_norm import ReluNorm


def block_ffn(num_experts: int, hidden: int) -> Moe:
    """Every expert whose logit is positive, weighed by the norm of all of them."""
    return Moe(num_experts, hidden, Linear("relu"), ReluNorm(num_experts), Local(), gated=False)


def config() -> Run:
    attn = Gqa(num_heads=4, num_kv_heads=2, head_width=32)
    return Run(
        name="blockffn",
        model=base.mixtral(2048, attn, block_ffn(24, 32), layers=4),
        train=TrainConfig(
            steps=2000,
            batch_rows=16,
            seq_len=128,
            losses=(
                NextToken(),
                ActivationLocality(weight=2e-3),
                ChunkSparsity(weight=0.5, chunk=16, constant_steps=200, period=50),
            ),
            optim=OptimConfig(learning_rate=3e-3, warmup_steps=50),
            log_every=25,
        ),
    )


def tiny() -> Run:
    """Two layers and bytes as tokens; seconds on a core."""
    attn = Gqa(num_heads=2, num_kv_heads=2, head_width=16)
    return Run(
        name="blockffn_tiny",
        model=base.mixtral(272, attn, block_ffn(8, 16), layers=2),
        train=TrainConfig(
            steps=200,
            batch_rows=8,
            seq_len=32,
            losses=(
                NextToken(),
                ActivationLocality(weight=2e-3),
                ChunkSparsity(weight=5e-2, chunk=8, constant_steps=50, period=10),
            ),
            optim=OptimConfig(learning_rate=1e-2, warmup_steps=10),
        ),
        data=DataConfig(tokenizer="bytes"),
    )
