"""Arithmetic without strategy."""
