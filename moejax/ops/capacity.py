"""How many slots an expert has for the tokens of a group."""

import math


def tutel_slots(num_tokens: int, num_experts: int, num_slots: int, factor: float) -> int:
    """K int(f ceil(N / E)): slots of an expert for N tokens of K choices each (Tutel, arXiv 2206.03382)."""
    return num_slots * int(factor * math.ceil(num_tokens / num_experts))
