"""The same model with other mixtures of experts."""

import dataclasses
from collections.abc import Callable

from moejax.config import ModelConfig
from moejax.ffn.moe import Moe


def with_moe(m: ModelConfig, change: Callable[[Moe], Moe]) -> ModelConfig:
    """The model with every mixture of experts changed; dense blocks stay."""

    def changed(block):
        return dataclasses.replace(block, ffn=change(block.ffn)) if isinstance(block.ffn, Moe) else block

    groups = [dataclasses.replace(group, blocks=tuple(map(changed, group.blocks))) for group in m.groups]
    return dataclasses.replace(m, groups=tuple(groups))
