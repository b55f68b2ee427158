"""Terms of the objective: each file is one published loss behind `moejax.seams.Loss`."""
