"""Selectors: one published way of choosing experts per file."""
