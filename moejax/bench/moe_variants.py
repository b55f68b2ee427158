"""The same model with other mixtures of experts, and curves of several seeds: what many programs need."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from moejax.bench.paper import Curve
from moejax.config import ModelConfig
from moejax.ffn.moe import Moe


def with_moe(m: ModelConfig, change: Callable[[Moe], Moe]) -> ModelConfig:
    """The model with every mixture of experts changed; dense blocks stay."""

    def changed(block):
        return dataclasses.replace(block, ffn=change(block.ffn)) if isinstance(block.ffn, Moe) else block

    groups = [dataclasses.replace(group, blocks=tuple(map(changed, group.blocks))) for group in m.groups]
    return dataclasses.replace(m, groups=tuple(groups))


def band(name: str, x: Sequence[float], y_RX) -> Curve:
    """The mean over seeds R, with the smallest and the largest."""
    y, low, high = (tuple(map(float, of(np.asarray(y_RX), axis=0))) for of in (np.mean, np.min, np.max))
    return Curve(name, tuple(map(float, x)), y, low, high)
