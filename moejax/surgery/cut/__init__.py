"""Cuts: what becomes of the parameters and of the config that they fit."""
