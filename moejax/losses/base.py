"""What most losses do with the parts of the Loss protocol that they do not need."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss without state, probes or influence on routing; subclasses fill in what they have."""

    weight: float = 1.0
    measures_text: ClassVar[bool] = False

    def init(self, m):
        return {}

    def probe(self, out, batch):
        return {}

    def side(self, state):
        return None


def seen_layers(probes) -> list:
    """What was seen in every block that routes, each with leading layer dim."""
    return [seen for group in probes for seen in group if seen]


def mean_over_layers(probes, value):
    """Mean over all MoE layers of `value(seen)`, where `seen` is one block's probe with leading layer dim."""
    per_layer = [value(seen) for seen in seen_layers(probes)]
    return jnp.mean(jnp.concatenate(per_layer)) if per_layer else jnp.zeros(())
