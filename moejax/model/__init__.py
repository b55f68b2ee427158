"""The decoder as pure functions: block, stack, forward."""
