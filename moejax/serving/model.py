"""A model as one record."""

import dataclasses
from typing import Any

from moejax.config import ModelConfig
from moejax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Model:
    """What is needed to continue a text."""

    cfg: ModelConfig
    params: Any  # as `moejax.model.forward.specs(cfg)` declares
    tokenizer: Tokenizer
    context: int  # tokens of prompt and completion together
    sides: Any = None  # what a balancing controller adds to the routing, per group and block; None = nothing
