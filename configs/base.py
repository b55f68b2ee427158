"""Shapes that recipes, tests and benchmarks start from."""

import dataclasses

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, DataConfig, Group, ModelConfig, OptimConfig, Run, TrainConfig
from moejax.dispatch.local import Local
from moejax.ffn.moe import Moe
from moejax.losses.balance import GlobalBalance
from moejax.losses.next_token import NextToken
from moejax.losses.z_loss import RouterZ
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK


def mixtral(vocab: int, attn: Gqa, ffn: Moe, layers: int, **model) -> ModelConfig:
    """A stack of equal blocks, attention then mixture of experts; the width is that of all heads together."""
    width = attn.num_heads * attn.head_width
    return ModelConfig(vocab=vocab, width=width, groups=(Group((BlockConfig(attn, ffn),), layers),), **model)


def apart(model: ModelConfig) -> ModelConfig:
    """The same layers, each a group of its own.

    A scan over layers copies the weights of each, and its gradients. With few layers those copies cost more
    than compiling every layer by itself does: `small` trains an eighth faster on CPU.
    """
    alone = (dataclasses.replace(group, repeat=1) for group in model.groups for _ in range(group.repeat))
    return dataclasses.replace(model, groups=tuple(alone))


def moe(num_experts: int, hidden: int, k: int) -> Moe:
    """Softmax top-k routing with renormalised gates, dropless."""
    return Moe(num_experts, hidden, Linear(), TopK(k), Local())


def losses() -> tuple:
    """Next token, balance over the whole batch, router z-loss."""
    return (NextToken(), GlobalBalance(weight=1e-2), RouterZ(weight=1e-3))


def tiny() -> Run:
    """Smallest run that has every part: 2 layers, width 64, 8 experts, bytes as tokens; seconds on a core."""
    return Run(
        name="tiny",
        model=mixtral(272, Gqa(num_heads=4, num_kv_heads=2, head_width=16), moe(8, 64, 2), layers=2),
        train=TrainConfig(
            steps=20,
            batch_rows=8,
            seq_len=64,
            losses=losses(),
            optim=OptimConfig(learning_rate=3e-3, warmup_steps=5),
            log_every=5,
            eval_every=10,
            eval_rows=16,
        ),
        data=DataConfig(tokenizer="bytes"),
    )


def small() -> Run:
    """88M parameters, 28M active, Mixtral-shaped: the model whose training speed is measured."""
    return Run(
        name="small",
        model=apart(
            mixtral(8192, Gqa(num_heads=8, num_kv_heads=4, head_width=64), moe(8, 1024, 2), layers=6)
        ),
        train=TrainConfig(
            steps=2000,
            batch_rows=8,
            seq_len=256,
            losses=losses(),
            optim=OptimConfig(learning_rate=1e-3, warmup_steps=100),
        ),
    )
