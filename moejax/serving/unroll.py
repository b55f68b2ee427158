"""The same model with every layer on its own.

Training keeps the layers of a group in one array per parameter and scans over them. In decoding, which reads
weights for a handful of tokens, the slice that such a scan takes is a copy of the layer: all its experts, and
its cache. A group per layer needs no slice.
"""

import dataclasses

import jax

from moejax.serving.model import Model


def unrolled(model: Model) -> Model:
    """`model` with one group per layer, itself if it is so already; it gives the same text, faster."""
    groups = model.cfg.groups
    if not model.cfg.scan and all(group.repeat == 1 for group in groups):
        return model
    layers = [(g, i) for g, group in enumerate(groups) for i in range(group.repeat)]
    params = dict(model.params)
    for g in range(len(groups)):
        del params[f"group{g}"]
    for layer, (g, i) in enumerate(layers):
        params[f"group{layer}"] = _take(model.params[f"group{g}"], i)
    cfg = dataclasses.replace(
        model.cfg, groups=tuple(dataclasses.replace(groups[g], repeat=1) for g, _ in layers), scan=False
    )
    sides = None if model.sides is None else tuple(_take(model.sides[g], i) for g, i in layers)
    return dataclasses.replace(model, cfg=cfg, params=params, sides=sides)


def _take(tree, layer: int):
    """One layer of stacked arrays; the layer dim stays, with length 1."""
    return jax.tree.map(lambda x: x[layer : layer + 1], tree)
