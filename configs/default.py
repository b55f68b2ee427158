"""The first run: a small mixture of experts learns the source of Python's standard library.

python train.py --config=configs/default.py --workdir=runs/default

2 CPU cores, 5 minutes, 1.60 bits per byte.

Small on purpose: two cores pass more text through it in five minutes, and text is what it lacks.
"""

from configs import base
from moejax.attention.gqa import Gqa
from moejax.config import OptimConfig, Run, TrainConfig


def config() -> Run:
    attn = Gqa(num_heads=4, num_kv_heads=2, head_width=32)
    return Run(
        name="default",
        model=base.mixtral(2048, attn, base.moe(8, 192, 2), layers=3),
        train=TrainConfig(
            steps=1100,
            batch_rows=16,
            seq_len=128,
            losses=base.losses(),
            optim=OptimConfig(learning_rate=4e-3, warmup_steps=50),
            log_every=25,
            eval_every=250,
        ),
    )
