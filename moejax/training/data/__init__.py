"""Text to batches: sources, records, tokenizer, packing, cache, order of the rows; no jax."""
