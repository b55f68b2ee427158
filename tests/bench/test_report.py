"""A claim holds when every bar is reached."""

import json
import math

import pytest

from moejax.analysis.machine import Machine
from moejax.bench import run
from moejax.bench.report import Bar, Measure, Report, median

MACHINE = Machine("cpu", 1, "some processor", 2, 2**33, "Linux", "3.11", "0.10", "0.10")
BAR = (Bar("speed", 2.0), Bar("share", 0.5))


def report(**values: float) -> Report:
    measures = tuple(Measure(name, value, "x", "higher") for name, value in values.items())
    return Report(
        "name", "claim", "source", {"rows": 8}, "baseline", measures, BAR, MACHINE, 1.0, ("a note",)
    )


@pytest.mark.parametrize(
    "values, holds",
    [
        ({"speed": 2.0, "share": 0.6}, True),
        ({"speed": 1.9, "share": 0.6}, False),
        ({"speed": 3.0}, None),  # the other bar was not measured
        ({"speed": 1.0}, False),  # whatever the other one is
        ({"speed": 3.0, "share": math.nan}, False),
    ],
)
def test_holds_follows_from_the_bar(values, holds):
    assert report(**values).holds is holds


def test_median_by_hand():
    measure = median("speed", [3.0, 1.0, 2.0], "tokens/s", "higher")
    assert (measure.value, measure.n, measure.spread, measure.samples) == (
        2.0,
        3,
        (1.0, 3.0),
        (3.0, 1.0, 2.0),
    )


def test_the_table_says_what_matters():
    text = run.table(report(speed=1.0))
    for part in ("claim", "some processor", "rows: 8", "note: a note", "does not hold", "share not measured"):
        assert part in text


def test_json_holds_everything(tmp_path, capsys):
    path = tmp_path / "results" / "speed.json"
    run.finish(report(speed=2.5, share=0.75), str(path))
    read = json.loads(path.read_text())
    assert read["holds"] is True
    assert read["machine"]["processor"] == "some processor"
    assert read["measures"][0]["value"] == 2.5
    assert str(path) in capsys.readouterr().out
