"""Scorers: one published way of scoring experts per file."""
