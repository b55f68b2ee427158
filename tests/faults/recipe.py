"""A run that has every part and is next to nothing: what the processes of the fault tests train.

    python train.py --config=tests/faults/recipe.py --workdir=runs/fault --config.data.source=README.md

The schedule is constant, so that one compiled step serves any number of steps.
"""

from configs import base
from moejax.attention.gqa import Gqa
from moejax.config import CheckpointConfig, DataConfig, OptimConfig, Run, TrainConfig


def config() -> Run:
    return Run(
        name="fault",
        model=base.mixtral(272, Gqa(num_heads=2, num_kv_heads=2, head_width=8), base.moe(4, 16, 2), layers=1),
        train=TrainConfig(
            steps=30,
            batch_rows=8,
            seq_len=16,
            losses=base.losses(),
            optim=OptimConfig(learning_rate=3e-3, warmup_steps=5, schedule="constant"),
            checkpoint=CheckpointConfig(every=5),
            log_every=1,
            eval_every=1000,
        ),
        data=DataConfig(tokenizer="bytes"),
    )
