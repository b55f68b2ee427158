"""Allocations: how many parts each layer keeps, and which."""
