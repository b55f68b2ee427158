"""Sparse pre-training: 80% of all weights leave between a quarter and three quarters of the run's compute.

    python train.py --config=configs/journey_matters.py --workdir=runs/journey_matters

2 CPU cores, a quarter of an hour. A dense byte-level model of 0.9M parameters in matrices; a fifth of them is
left at the end, 40% on average. `prune/weights` in metrics.jsonl says how many there are. Another sparsity or
length moves the steps of pruning along: --config.train.rules[0].sparsity=0.5 --config.train.steps=2000.
"""

import dataclasses

from configs import base
from moejax.attention.gqa import Gqa
from moejax.config import DataConfig, OptimConfig, Run, TrainConfig
from moejax.ffn.dense import Dense
from moejax.losses.next_token import NextToken
from moejax.training.rules.gradual_prune import GradualPrune


def config() -> Run:
    """The unembedding has weights of its own, as only these are pruned."""
    attn = Gqa(num_heads=4, num_kv_heads=4, head_width=32)
    return Run(
        name="journey_matters",
        model=base.mixtral(272, attn, Dense(384), layers=4, tied=False),
        train=TrainConfig(
            steps=4000,
            batch_rows=16,
            seq_len=128,
            losses=(NextToken(),),
            optim=OptimConfig(learning_rate=3e-3, warmup_steps=40),
            rules=(GradualPrune(sparsity=0.8, every=20),),
            log_every=25,
        ),
        data=DataConfig(tokenizer="bytes"),
    )


def moe() -> Run:
    """Four experts, one per token; they are pruned together with all else, the router is not."""
    run = config()
    model = base.mixtral(272, run.model.groups[0].blocks[0].attn, base.moe(4, 384, 1), layers=4, tied=False)
    train = dataclasses.replace(run.train, losses=base.losses())
    return dataclasses.replace(run, name="journey_matters_moe", model=model, train=train)


def tiny() -> Run:
    """Two layers; seconds on a core."""
    attn = Gqa(num_heads=2, num_kv_heads=2, head_width=16)
    return Run(
        name="journey_matters_tiny",
        model=base.mixtral(272, attn, base.moe(4, 32, 1), layers=2, tied=False),
        train=TrainConfig(
            steps=200,
            batch_rows=8,
            seq_len=32,
            losses=base.losses(),
            optim=OptimConfig(learning_rate=1e-2, warmup_steps=10),
            rules=(GradualPrune(sparsity=0.5, every=10),),
        ),
        data=DataConfig(tokenizer="bytes"),
    )
