"""Duo-LLM: every layer has a small and a big feed-forward module, drawn at random for each token and layer.

    python train.py --config=configs/duo_llm.py --workdir=runs/duo_llm                  stage 1: no router yet
    python train.py --config=configs/duo_llm.py:router --workdir=runs/duo_llm_router    routers and modules

Afterwards `moejax.analysis.route_oracle` finds the best route of every token, and
`moejax.ffn.duo.route_sides` leads tokens along any route. Expect the best route with one big layer of six to
beat all-big, and no router to come near it.
"""

import dataclasses

from configs import base
from moejax.attention.gqa import Gqa
from moejax.config import DataConfig, OptimConfig, Run, TrainConfig
from moejax.dispatch.local import Local
from moejax.ffn.duo import Drawn, Duo, Learned
from moejax.losses.budget import Budget
from moejax.losses.next_token import NextToken


def config() -> Run:
    """Six layers, so that all 64 routes can be tried; the big module is 16 times as wide as the small one."""
    attn, ffn = Gqa(num_heads=4, num_kv_heads=4, head_width=32), Duo(32, 512, Drawn(big=0.5), Local())
    return Run(
        name="duo_llm",
        model=base.mixtral(2048, attn, ffn, layers=6),
        train=TrainConfig(
            steps=2000,
            batch_rows=16,
            seq_len=128,
            losses=(NextToken(),),
            optim=OptimConfig(learning_rate=3e-3, warmup_steps=100),
            log_every=25,
        ),
    )


def router() -> Run:
    """A linear router per layer, held to half of the layers big for every sequence."""
    run = config()
    attn, ffn = Gqa(num_heads=4, num_kv_heads=4, head_width=32), Duo(32, 512, Learned(beta=4.0), Local())
    train = dataclasses.replace(run.train, losses=(NextToken(), Budget(weight=4.0, target=0.5)))
    return dataclasses.replace(
        run, name="duo_llm_router", model=base.mixtral(2048, attn, ffn, layers=6), train=train
    )


def tiny() -> Run:
    """Two layers and bytes as tokens; seconds on a core."""
    attn, ffn = Gqa(num_heads=2, num_kv_heads=2, head_width=16), Duo(8, 64, Drawn(big=0.5), Local())
    return Run(
        name="duo_llm_tiny",
        model=base.mixtral(272, attn, ffn, layers=2),
        train=TrainConfig(
            steps=200,
            batch_rows=8,
            seq_len=32,
            losses=(NextToken(),),
            optim=OptimConfig(learning_rate=1e-2, warmup_steps=10),
        ),
        data=DataConfig(tokenizer="bytes"),
    )
