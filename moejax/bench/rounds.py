"""Timing contestants side by side, so that what disturbs the machine disturbs all of them alike."""

import time
from collections.abc import Callable, Mapping

Samples = dict[str, list[float]]


def interleave(
    contestants: Mapping[str, Callable[[], None]], num_rounds: int, steps: int, between: Callable[[], None]
) -> Samples:
    """Seconds per step of every contestant, one sample per round.

    Args:
      contestants: by name, what one step is; it returns when its work is done. Already warm.
      num_rounds: in each, every contestant runs once; every other round goes backwards.
      steps: that one sample is the mean of.
      between: called before each round.
    """
    samples: Samples = {name: [] for name in contestants}
    for number in range(num_rounds):
        between()
        names = list(contestants)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            samples[name].append(seconds(contestants[name], steps))
    return samples


def seconds(step: Callable[[], None], steps: int) -> float:
    """Wall time per step over `steps` of them."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps
