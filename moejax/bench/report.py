"""What a benchmark returns: a claim, how it was measured, and whether it holds."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from moejax.analysis.machine import Machine
from moejax.config import require

HOLDS, FAILS, INCONCLUSIVE = "holds", "fails", "inconclusive"
WORDS = {HOLDS: "holds", FAILS: "does not hold", INCONCLUSIVE: "is undecided"}  # of a claim, in a sentence
CONFIDENCE = 0.95  # of intervals


@dataclasses.dataclass(frozen=True)
class Measure:
    """One figure; of several samples it is the median or the mean."""

    name: str
    value: float
    unit: str
    better: str  # higher | lower | neither
    n: int = 1  # samples
    spread: tuple[float, float] | None = None  # smallest and largest sample
    samples: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None  # that the true mean lies in, with 95% confidence


@dataclasses.dataclass(frozen=True)
class Bar:
    """What the claim asks of one measure: a least value, a greatest one, or both."""

    measure: str  # name of a Measure
    at_least: float = -math.inf
    at_most: float = math.inf

    def verdict(self, measure: Measure) -> str:
        """Of a measure with an interval, the whole interval has to lie on one side of the bar."""
        low, high = measure.interval or (measure.value, measure.value)
        if self.at_least <= low and high <= self.at_most:
            return HOLDS
        return INCONCLUSIVE if low <= self.at_most and high >= self.at_least else FAILS

    def __str__(self) -> str:
        parts = [f"{self.at_least:.4g} or more"] if self.at_least > -math.inf else []
        return " and ".join(parts + [f"{self.at_most:.4g} or less"] * (self.at_most < math.inf))


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
    command: str = ""  # that makes this report

    @property
    def verdict(self) -> str:
        """fails when one bar does; holds when all do; else inconclusive, as when one was not measured."""
        found = {measure.name: measure for measure in self.measures}
        each = {bar.verdict(found[bar.measure]) if bar.measure in found else INCONCLUSIVE for bar in self.bar}
        return FAILS if FAILS in each else INCONCLUSIVE if INCONCLUSIVE in each else HOLDS

    @property
    def holds(self) -> bool | None:
        """The verdict; None when it is open."""
        return {HOLDS: True, FAILS: False, INCONCLUSIVE: None}[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """As JSON's types; a bar has only the sides that it asks for."""
        found = dataclasses.asdict(self)
        found["bar"] = [
            {k: v for k, v in bar.items() if v not in (-math.inf, math.inf)} for bar in found["bar"]
        ]
        return found | {"holds": self.holds, "verdict": self.verdict}


def median(name: str, samples: Sequence[float], unit: str, better: str = "neither") -> Measure:
    """The Measure of several samples of one figure, such as times."""
    spread = (min(samples), max(samples))
    return Measure(name, statistics.median(samples), unit, better, len(samples), spread, tuple(samples))


def mean(name: str, samples: Sequence[float], unit: str, better: str = "neither") -> Measure:
    """The mean of independent samples, such as seeds, with Student's interval.

    Raises:
      UsageError: fewer than two samples.
    """
    require(len(samples) > 1, f"{name} has {len(samples)} samples; an interval needs two or more")
    samples = tuple(map(float, samples))
    value, half = statistics.fmean(samples), _half_width(samples)
    spread = (min(samples), max(samples))
    return Measure(name, value, unit, better, len(samples), spread, samples, (value - half, value + half))


def paired(
    name: str, method: Sequence[float], baseline: Sequence[float], unit: str, better: str = "neither"
) -> Measure:
    """The mean of method - baseline over pairs of equal seeds."""
    return mean(name, [a - b for a, b in zip(method, baseline, strict=True)], unit, better)


def paired_ratio(
    name: str, method: Sequence[float], baseline: Sequence[float], better: str = "neither"
) -> Measure:
    """The geometric mean of method / baseline over pairs of equal seeds; both are positive."""
    logs = [math.log(a / b) for a, b in zip(method, baseline, strict=True)]
    found = mean(name, logs, "x", better)
    spread, interval = (tuple(map(math.exp, pair)) for pair in (found.spread, found.interval))
    samples = tuple(map(math.exp, found.samples))
    return dataclasses.replace(
        found, value=math.exp(found.value), spread=spread, interval=interval, samples=samples
    )


def _half_width(samples: Sequence[float]) -> float:
    """Of the interval of the mean, from the samples' own spread."""
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(samples) - 1)
    return float(quantile * statistics.stdev(samples) / math.sqrt(len(samples)))
