"""Programs that measure a claim and return one Report: `python -m moejax.bench NAME`."""
