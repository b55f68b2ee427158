"""Recipes: each file has a function `config` that returns a whole run; only here is anything chosen."""
