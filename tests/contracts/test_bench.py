"""What every program of a published result promises: four sizes, bars on what it measures, its true verdict.

`tiny` of all of them takes minutes, so every change runs the cheapest alone.
"""

import functools
import itertools
import json
import math
import pathlib
import re

import pytest

from moejax.bench import paper
from moejax.bench.paper import Chart, Inputs
from moejax.bench.report import FAILS, HOLDS, INCONCLUSIVE, Report

EVERY_CHANGE = ("fsmoe",)
NAMES = paper.names()
RUN = [name if name in EVERY_CHANGE else pytest.param(name, marks=pytest.mark.nightly) for name in NAMES]
ABSOLUTE = re.compile(r"(?<![\w.])/(home|root|tmp|var|usr|opt|mnt|srv|work|private|Users)/")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two domains of text, and a cache in which programs find each other's models."""
    from pydoc_data import topics

    folder, texts = tmp_path_factory.mktemp("bench"), sorted(topics.topics.values())
    for name, part in (("even", texts[::2]), ("odd", texts[1::2])):
        (folder / f"{name}.txt").write_text("\n".join(part), encoding="utf-8")
    return Inputs(text=(f"{folder}/even.txt", f"{folder}/odd.txt"), cache=str(folder / "cache"))


@functools.cache
def tiny(name: str, inputs: Inputs):
    return paper.find(name).run(name, "tiny", inputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_program_says_what_it_does(name):
    program = paper.find(name)
    assert tuple(program.sizes) == paper.SIZES
    kinds = {type(settings) for settings in program.sizes.values()}
    assert len(kinds) == 1 and kinds.pop().__dataclass_params__.frozen
    assert program.claim and program.baseline and re.search(r"arXiv \d{4}\.\d{5}", program.title)
    assert program.bars and len({bar.measure for bar in program.bars}) == len(program.bars)
    for bar in program.bars:
        assert -math.inf < bar.at_least or bar.at_most < math.inf, f"{bar.measure} may be anything"
        assert bar.at_least <= bar.at_most


@pytest.mark.parametrize("name", RUN)
def test_tiny_gives_a_report(name, inputs):
    report, findings = tiny(name, inputs)
    check_measures(report)
    assert report.verdict == verdict_by_hand(report)
    assert report.command == f"python -m moejax.bench run {name} --size=tiny --text=even.txt,odd.txt"
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert not ABSOLUTE.search(text) and str(pathlib.Path(inputs.cache).parent) not in text
    assert json.loads(text)["settings"]["size"] == "tiny"
    for chart in findings.charts:
        check_chart(chart)


def check_measures(report: Report) -> None:
    """Every figure is finite, has a unit, and an interval that three or more samples speak for."""
    names = [measure.name for measure in report.measures]
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]
    assert {bar.measure for bar in report.bar} <= set(names)
    for measure in report.measures:
        where = f"{report.name}: {measure.name}"
        both = itertools.chain(measure.samples, measure.spread or (), measure.interval or ())
        assert all(map(math.isfinite, (measure.value, *both))), where
        assert measure.unit and measure.better in ("higher", "lower", "neither"), where
        assert measure.n == len(measure.samples) or not measure.samples, where
        if measure.interval:
            low, high = measure.interval
            assert measure.n >= 3 and low <= measure.value <= high, where


def verdict_by_hand(report: Report) -> str:
    """Each bar by each end of the interval."""
    found = {measure.name: measure for measure in report.measures}
    each = []
    for bar in report.bar:
        measure = found[bar.measure]
        low, high = measure.interval or (measure.value, measure.value)
        outside = high < bar.at_least or low > bar.at_most
        inside = bar.at_least <= low and high <= bar.at_most
        each.append(FAILS if outside else HOLDS if inside else INCONCLUSIVE)
    return next((verdict for verdict in (FAILS, INCONCLUSIVE) if verdict in each), HOLDS)


def check_chart(chart: Chart) -> None:
    assert chart.title and chart.x_name and chart.y_name and chart.curves
    for curve in chart.curves:
        assert len(curve.x) == len(curve.y) > 0, curve.name
        assert all(map(math.isfinite, (*curve.x, *curve.y, *curve.low, *curve.high))), curve.name
        for low, y, high in zip(curve.low, curve.y, curve.high, strict=True) if curve.low else ():
            assert low - 1e-9 <= y <= high + 1e-9, curve.name
