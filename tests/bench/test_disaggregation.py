"""The benchmark of pools: all of it in small, and requests as it says they are."""

import json

import numpy as np

from moejax.bench import __main__ as door
from moejax.bench import disaggregation


def test_all_of_it(tmp_path):
    path = tmp_path / "report.json"
    assert door.main(["disaggregation", "--size=tiny", f"--json={path}"]) == 0
    report = json.loads(path.read_text())
    value = {measure["name"]: measure["value"] for measure in report["measures"]}
    split, colocated = value["30 ms: split"], value["30 ms: colocated"]
    assert report["holds"] and value["30 ms: split / colocated"] >= 1.15
    assert np.isfinite(list(value.values())).all() and split > colocated > 0


def test_a_loose_target_shows_that_splitting_can_lose():
    cfg = disaggregation.Disaggregation(targets=(0.1,), seeds=1)
    report = disaggregation.run(cfg)
    value = {measure.name: measure.value for measure in report.measures}
    assert value["100 ms: split / colocated"] < 1
    assert report.holds is None  # the tight target was not measured


def test_requests_are_as_described():
    sent = disaggregation.chat(4000, seed=0)
    assert abs(np.median(sent.prompt) - 300) < 30 and abs(np.median(sent.output) - 150) < 15
    assert sent.prompt.max() == 1500 and sent.output.max() <= 1000
