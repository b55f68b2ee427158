"""A few tokens times the union of the experts that any of them activates, for decoding."""
