"""Which experts a prompt needs, found before any expert is loaded.

PreMoe (2025, arXiv 2505.17639, version 1): the score that ranks the experts of a task is a vector per layer.
A prompt passes the model up to the first router; the task whose first vector is nearest lends its experts.

Differs from the paper: the paper keeps the first layer's vector and, for later layers, the expert of each
rank; here a task keeps its scores, whose best experts are the same.
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from moejax.config import require
from moejax.surgery.seams import Scores
from moejax.surgery.take import per_layer, routed


def through_first_router(params, m, sides=None):
    """(params, m, sides) of the model's blocks up to the first that routes; what follows is not touched.

    Raises:
      UsageError: no block routes.
    """
    routers = [(g, b) for g, group in enumerate(m.groups) for b, x in enumerate(group.blocks) if routed(x)]
    require(bool(routers), "the model has no routers, so a prompt says nothing about experts")
    g, b = routers[0]
    last = dataclasses.replace(m.groups[g], blocks=m.groups[g].blocks[: b + 1], repeat=1)
    own = {f"block{i}": jax.tree.map(lambda x: x[:1], params[f"group{g}"][f"block{i}"]) for i in range(b + 1)}
    later = {f"group{i}" for i in range(g, len(m.groups))}
    short = {name: leaf for name, leaf in params.items() if name not in later} | {f"group{g}": own}
    if sides is not None:
        sides = (*sides[:g], jax.tree.map(lambda x: x[:1], sides[g][: b + 1]))
    return short, dataclasses.replace(m, groups=(*m.groups[:g], last)), sides


def pooled(scores: list[Scores]) -> Scores:
    """The scores of several tasks together, each with the same weight: those of a generalist."""
    return jax.tree.map(lambda *each: np.mean(each, axis=0), *scores)


def nearest(tasks: Mapping[str, Scores], prompt: Scores) -> str:
    """The task whose vector at the first router is nearest to the prompt's."""
    query_E = per_layer(prompt)[0]
    return min(tasks, key=lambda name: float(np.sum(np.square(per_layer(tasks[name])[0] - query_E))))
