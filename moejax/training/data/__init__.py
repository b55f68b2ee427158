"""Text to batches: sources, records, tokenizer, packing, cache and the order of the rows; numpy only, no jax."""
