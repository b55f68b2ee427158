"""Matrix products of sorted row groups, each group with its own matrix."""
