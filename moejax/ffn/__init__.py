"""Position-wise layers behind `moejax.seams.Ffn`."""
