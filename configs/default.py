"""The first run: a small mixture of experts learns the source of Python's standard library.

    python train.py --config=configs/default.py --workdir=runs/default
"""

from configs import base
from moejax.attention.gqa import Gqa
from moejax.config import OptimConfig, Run, TrainConfig


def config() -> Run:
    return Run(
        name="default",
        model=base.mixtral(2048, Gqa(num_heads=4, num_kv_heads=2, head_width=48), base.moe(8, 256, 2), layers=4),
        train=TrainConfig(
            steps=1200,
            batch_rows=16,
            seq_len=128,
            losses=base.losses(),
            optim=OptimConfig(learning_rate=4e-3, warmup_steps=100),
            log_every=20,
            eval_every=300,
        ),
    )
