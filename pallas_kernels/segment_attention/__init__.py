"""Causal softmax attention within segments of packed rows, with grouped key/value heads."""
