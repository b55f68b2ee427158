"""Read-ME: one small causal router reads the token ids, and its choice of expert holds in every layer.

    python train.py --config=configs/read_me.py --workdir=runs/read_me                 2 CPU cores, 6 minutes

The architecture, trained from scratch: the paper cuts its experts out of a dense model and distils the
router. Here the router learns through the gate, the probability of the one expert that a token takes. Expect
a few percent more bits per byte than the default recipe, for half of the active expert width and experts that
are known before the first layer runs.
"""

import dataclasses

from configs import base, default
from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, Group, Run
from moejax.ffn.dense import Dense
from moejax.ffn.moe import Moe
from moejax.routers.score.pregated import Pregated
from moejax.routers.select.top_k import TopK


def pregated(num_experts: int, hidden: int, width: int) -> Moe:
    """One expert per token, by a router of one block of four heads."""
    block = BlockConfig(Gqa(num_heads=4, num_kv_heads=4, head_width=width // 4), Dense(width))
    router = Pregated(width, (Group((block,)),))
    return dataclasses.replace(
        base.moe(num_experts, hidden, k=1), scorer=router, selector=TopK(1, renormalise=False)
    )


def config() -> Run:
    attn = Gqa(num_heads=4, num_kv_heads=2, head_width=32)
    model = base.mixtral(2048, attn, pregated(8, 192, width=64), layers=3)
    return dataclasses.replace(default.config(), name="read_me", model=model)


def tiny() -> Run:
    """Two layers and bytes as tokens; a minute on a core."""
    run, attn = base.tiny(), Gqa(num_heads=4, num_kv_heads=2, head_width=16)
    model = base.mixtral(272, attn, pregated(8, 64, width=32), layers=2)
    train = dataclasses.replace(run.train, steps=200)
    return dataclasses.replace(run, name="read_me_tiny", model=model, train=train)
