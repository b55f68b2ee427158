"""A model as one record."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moejax.config import ModelConfig
from moejax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Model:
    """What is needed to continue a text."""

    cfg: ModelConfig
    params: Any  # as `moejax.model.forward.specs(cfg)` declares
    tokenizer: Tokenizer | None  # None: prompts are lists of ids
    context: int  # tokens of prompt and completion together
    sides: Any = None  # what a balancing controller adds to the routing, per group and block; None = nothing
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # config.json of a foreign model
