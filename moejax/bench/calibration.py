"""Training text by domain, to look at a trained model with; held-out text is left for the measurement."""

import dataclasses

import numpy as np

from moejax.bench.domains import Domains


def of_training(text: Domains, rows_each: int) -> Domains:
    """The same text, whose held-out rows are up to `rows_each` evenly spread training rows of each domain."""
    held_out = {}
    for label, name in enumerate(text.names):
        own_N = np.flatnonzero(text.train_label_N == label)
        some_N = own_N[np.arange(min(rows_each, len(own_N))) * len(own_N) // min(rows_each, len(own_N))]
        held_out[name] = text.train.where(some_N)
    return dataclasses.replace(text, held_out=held_out)
