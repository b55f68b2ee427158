"""The mean over layers, by hand."""

import numpy as np

from moejax.losses.base import mean_over_layers


def test_every_routed_layer_counts_the_same():
    """A group of two layers (1, 2) and one of a single layer (6), a dense block between them: 3."""
    probes = (({"x": np.array([1.0, 2.0])}, {}), ({"x": np.array([6.0])},))
    assert mean_over_layers(probes, lambda seen: seen["x"]) == 3


def test_a_model_without_routers_gives_zero():
    assert mean_over_layers((({},),), lambda seen: seen["x"]) == 0
