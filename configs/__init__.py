"""Recipes: each file has a function `config` that returns a whole run; this is the only place that chooses."""
