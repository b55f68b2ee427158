"""Scores: how much each part of a model matters for some text, one published way per file."""
