"""Hugging Face transformers: one module per model family."""
