"""Training: the loop, its state, its data, and what it reports."""
