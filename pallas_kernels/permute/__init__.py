"""Rows of tokens sorted by expert, and the weighted sum that brings them back."""
