"""Scores that know nothing: what every way of choosing parts has to beat."""

import dataclasses

import numpy as np

from moejax.surgery.seams import Score
from moejax.surgery.take import routed


@dataclasses.dataclass(frozen=True)
class Random(Score):
    """Uniform numbers for the experts of every layer."""

    seed: int = 0

    def score(self, params, m, batches, sides=None):
        rng = np.random.default_rng(self.seed)

        def one(block, repeat):
            return rng.random((repeat, block.ffn.num_experts)) if routed(block) else None

        return tuple(tuple(one(block, group.repeat) for block in group.blocks) for group in m.groups)
