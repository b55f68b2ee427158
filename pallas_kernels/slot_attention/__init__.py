"""Attention of the flat rows of many requests over a paged cache, for serving."""
