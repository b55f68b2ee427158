"""The small model of specialisation studies: 16 narrow experts per layer, trained on several kinds of text.

    python train.py --config=configs/domains.py --workdir=runs/domains --config.data.source='("plays.txt",)'

2 CPU cores, 3 minutes. The programs of `python -m moejax.bench list` that study what experts learn train it
from several seeds, with text of every domain in equal parts, and keep it for one another.
"""

import dataclasses

from configs import base
from moejax.attention.gqa import Gqa
from moejax.config import OptimConfig, Run, TrainConfig
from moejax.losses.balance import GlobalBalance
from moejax.losses.next_token import NextToken

VOCAB, SEQ_LEN = 1024, 64


def config() -> Run:
    """Top-2 routing; 0.9M parameters."""
    attn = Gqa(num_heads=4, num_kv_heads=2, head_width=16)
    return Run(
        name="domains",
        model=base.mixtral(VOCAB, attn, base.moe(16, 64, 2), layers=4, tied=True),
        train=TrainConfig(
            steps=1800,
            batch_rows=32,
            seq_len=SEQ_LEN,
            losses=(NextToken(), GlobalBalance(weight=1e-2)),
            optim=OptimConfig(learning_rate=4e-3, warmup_steps=50),
        ),
    )


def top1() -> Run:
    """One expert per token, of twice the width: the same active parameters."""
    run = config()
    attn = run.model.groups[0].blocks[0].attn
    model = base.mixtral(VOCAB, attn, base.moe(16, 128, 1), layers=4, tied=True)
    return dataclasses.replace(run, name="domains_top1", model=model)


def tiny() -> Run:
    """Two layers of eight experts, a few steps; seconds on a core."""
    run = config()
    attn = Gqa(num_heads=2, num_kv_heads=1, head_width=16)
    model = base.mixtral(VOCAB, attn, base.moe(8, 32, 2), layers=2, tied=True)
    train = dataclasses.replace(run.train, steps=30, batch_rows=8)
    return dataclasses.replace(run, name="domains_tiny", model=model, train=train)
