"""Published results, one program each: `python -m moejax.bench list`."""
