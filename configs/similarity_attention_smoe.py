"""Routers over a graph of tokens: a token follows the router rows of those it attends to, or resembles.

    python train.py --config=configs/similarity_attention_smoe.py --workdir=runs/attention_aware
    python train.py --config=configs/similarity_attention_smoe.py:similarity --workdir=runs/similarity_aware
    python train.py --config=configs/similarity_attention_smoe.py:half --workdir=runs/half_aware
    python train.py --config=configs/similarity_attention_smoe.py:linear --workdir=runs/unaware

2 CPU cores, 10 minutes each. Expect bits per byte within 1% of the linear router's, and fewer tokens that
change their expert between late checkpoints. Written from the abstract: no figure of the paper to compare.
"""

import dataclasses

from configs import base, default
from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, Group, Run
from moejax.routers.score.linear import Linear
from moejax.routers.score.token_graph import AttentionAware, SimilarityAware


def config() -> Run:
    """By the attention map of the same block."""
    return routed_by("attention_aware", AttentionAware())


def similarity() -> Run:
    """By a learned similarity of tokens."""
    return routed_by("similarity_aware", SimilarityAware())


def half() -> Run:
    """Half by the attention map, half by the token itself."""
    return routed_by("half_aware", AttentionAware(share=0.5))


def linear() -> Run:
    """The baseline: every token by itself."""
    return routed_by("unaware", Linear())


def routed_by(name: str, scorer) -> Run:
    attn, ffn = Gqa(num_heads=4, num_kv_heads=2, head_width=32), base.moe(16, 128, 2)
    model = base.mixtral(2048, attn, dataclasses.replace(ffn, scorer=scorer), layers=4)
    return dataclasses.replace(default.config(), name=name, model=model)


def tiny() -> Run:
    """One layer of each kind and bytes as tokens; a minute on a core."""
    run, attn, ffn = base.tiny(), Gqa(num_heads=4, num_kv_heads=2, head_width=16), base.moe(8, 64, 2)
    blocks = (
        BlockConfig(attn, dataclasses.replace(ffn, scorer=AttentionAware())),
        BlockConfig(attn, dataclasses.replace(ffn, scorer=SimilarityAware())),
    )
    model = dataclasses.replace(run.model, groups=(Group(blocks),))
    train = dataclasses.replace(run.train, steps=200)
    return dataclasses.replace(run, name="similarity_attention_smoe_tiny", model=model, train=train)
