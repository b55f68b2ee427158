"""The form of a model by which text is generated: no layer may look at tokens that are not written yet."""

import dataclasses

from moejax.config import require
from moejax.serving.model import Model


def causal(model: Model) -> Model:
    """`model` with every layer in its causal form; experts that have a capacity drop nothing then.

    Raises:
      UsageError: a layer has no causal form.
    """
    groups = tuple(
        dataclasses.replace(group, blocks=tuple(_causal(block) for block in group.blocks))
        for group in model.cfg.groups
    )
    return dataclasses.replace(model, cfg=dataclasses.replace(model.cfg, groups=groups))


def _causal(block):
    ffn = block.ffn.causal_form()
    kind = type(getattr(ffn, "selector", ffn)).__name__
    require(
        ffn.causal,
        f"the model routes by {kind}, which looks at later tokens, so it cannot write text token by token; "
        "train one with a causal selector, such as TopK",
    )
    return dataclasses.replace(block, ffn=ffn)
