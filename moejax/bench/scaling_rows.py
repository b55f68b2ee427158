"""Rows of the scaling benchmark in a report: measures named "ROW: FIGURE", and the pages made of them."""

import dataclasses
from collections.abc import Iterable

from moejax.bench.report import Measure

FAILURES = "did not compile"  # of a report's settings: why, by row


@dataclasses.dataclass(frozen=True)
class Row:
    """One program: what was found out about it, or why nothing was."""

    name: str  # measured data=4 weak, compiled v5e:16x16
    measures: tuple[Measure, ...]
    failure: str = ""


def part_of(row: str) -> str:
    """measured | compiled"""
    return row.partition(" ")[0]


def row_of(measure: str) -> str:
    """The row's name in the name of a measure."""
    return measure.partition(": ")[0]


def figures(measures: Iterable[Measure]) -> dict[str, dict[str, float]]:
    """Value by row and figure, in their order."""
    found: dict[str, dict[str, float]] = {}
    for measure in measures:
        row, _, figure = measure.name.partition(": ")
        found.setdefault(row, {})[figure] = measure.value
    return found
