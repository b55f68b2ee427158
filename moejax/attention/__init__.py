"""Attention strategies: each mixes positions in its own way behind `moejax.seams.Attention`."""
