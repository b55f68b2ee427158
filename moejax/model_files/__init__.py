"""`python -m moejax inspect | verify | convert`: models as files, of any kind that `moejax.load` reads."""
