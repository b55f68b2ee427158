"""RMoE: the router of every layer sees what the routers below decided for the same token, through one GRU.

    python train.py --config=configs/rmoe.py --workdir=runs/rmoe                      2 CPU cores, 10 minutes
    python train.py --config=configs/rmoe.py:without_passing --workdir=runs/rmoe_np   no state between layers
    python train.py --config=configs/rmoe.py:detached --workdir=runs/rmoe_detached    no gradient between them
    python train.py --config=configs/rmoe.py:linear --workdir=runs/rmoe_linear        the usual router

Expect the same bits per byte within 1% for all four, and a softer choice, a higher router entropy, with the
GRU: at this size the paper's gain lies in how the router behaves, not in the loss.
"""

import dataclasses

from configs import base, default
from moejax.attention.gqa import Gqa
from moejax.config import Run
from moejax.routers.score.linear import Linear
from moejax.routers.score.recurrent import Recurrent


def config() -> Run:
    return routed_by("rmoe", Recurrent(width=64))


def without_passing() -> Run:
    """Every layer begins with an empty state; parameters and FLOPs are the same."""
    return routed_by("rmoe_np", Recurrent(width=64, recurrent="np"))


def detached() -> Run:
    """The state passes from layer to layer, its gradient does not."""
    return routed_by("rmoe_detached", Recurrent(width=64, recurrent="detach"))


def linear() -> Run:
    """The baseline."""
    return routed_by("rmoe_linear", Linear())


def routed_by(name: str, scorer) -> Run:
    """Six layers of sixteen experts, so that there is a depth to be recurrent over."""
    attn, ffn = Gqa(num_heads=4, num_kv_heads=2, head_width=32), base.moe(16, 128, 2)
    model = base.mixtral(2048, attn, dataclasses.replace(ffn, scorer=scorer), layers=6)
    return dataclasses.replace(default.config(), name=name, model=model)


def tiny() -> Run:
    """Two layers and bytes as tokens; a minute on a core."""
    run, attn = base.tiny(), Gqa(num_heads=4, num_kv_heads=2, head_width=16)
    ffn = dataclasses.replace(base.moe(8, 64, 2), scorer=Recurrent(width=16))
    train = dataclasses.replace(run.train, steps=200)
    return dataclasses.replace(
        run, name="rmoe_tiny", model=base.mixtral(272, attn, ffn, layers=2), train=train
    )
