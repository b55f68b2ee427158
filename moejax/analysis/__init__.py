"""Numbers in, frozen record out: what a program costs and what a machine can do."""
