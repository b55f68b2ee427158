"""What a benchmark returns: a claim, how it was measured, and whether it holds."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from moejax.analysis.machine import Machine


@dataclasses.dataclass(frozen=True)
class Measure:
    """One figure; of several samples it is the median."""

    name: str
    value: float
    unit: str
    better: str  # higher | lower | neither
    n: int = 1  # samples
    spread: tuple[float, float] | None = None  # smallest and largest sample
    samples: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Bar:
    """What the claim asks of one measure."""

    measure: str  # name of a Measure
    at_least: float


@dataclasses.dataclass(frozen=True)
class Report:
    """One run of a benchmark. A claim that fails is a Report, not an exception."""

    name: str
    claim: str
    source: str  # of the claim, and what was measured
    settings: Mapping[str, Any]
    baseline: str  # what the method is compared to
    measures: tuple[Measure, ...]
    bar: tuple[Bar, ...]
    machine: Machine
    seconds: float  # of the whole run
    notes: tuple[str, ...] = ()  # what a reader must know to trust the figures

    @property
    def holds(self) -> bool | None:
        """Whether every bar is reached; None when one could not be measured and no other one fails."""
        value = {measure.name: measure.value for measure in self.measures}
        reached = [value[bar.measure] >= bar.at_least for bar in self.bar if bar.measure in value]
        return all(reached) if len(reached) == len(self.bar) or not all(reached) else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON's types."""
        return dataclasses.asdict(self) | {"holds": self.holds}


def median(name: str, samples: Sequence[float], unit: str, better: str = "neither") -> Measure:
    """The Measure of several samples of one figure."""
    spread = (min(samples), max(samples))
    return Measure(name, statistics.median(samples), unit, better, len(samples), spread, tuple(samples))
