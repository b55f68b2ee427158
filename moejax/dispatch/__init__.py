"""Ways of bringing rows to experts and back, behind `moejax.seams.Dispatch`."""
