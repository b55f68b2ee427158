"""Products of 8-bit integers with a scale per row and per column."""
