"""A router is a Scorer (how much each expert is wanted) times a Selector (who gets in)."""
