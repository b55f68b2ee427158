"""Gated linear units over sorted row groups, each group with its own pair of matrices."""
