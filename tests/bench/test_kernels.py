"""The benchmark of kernels on the smallest shapes: its figures mean nothing, their form does."""

import json
import math

from moejax.bench import __main__ as door
from moejax.bench import grouped_contests, kernels
from pallas_kernels.grouped_matmul import shapes


def test_every_contest_of_the_smallest_shapes(tmp_path, capsys):
    path = tmp_path / "kernels.json"
    assert door.main(["kernels", "--size=tiny", "--only=zipf|layer|attention", f"--json={path}"]) == 0
    record = json.loads(path.read_text())
    measures = {measure["name"]: measure for measure in record["measures"]}
    for product in grouped_contests.PRODUCTS:
        for rival in ("moejax", "ragged_dot", "dense", "moejax / dense"):
            assert f"{product} odd zipf: {rival}" in measures
    assert {"layer tiny: moejax", "layer tiny: temporaries", "attention forward tiny: moejax"} <= set(
        measures
    )
    assert all(math.isfinite(measure["value"]) for measure in record["measures"])
    assert not record["notes"]  # everybody took part
    assert "forward odd zipf: moejax / dense" in capsys.readouterr().out


def test_names_that_match_nothing_are_refused(capsys):
    assert door.main(["kernels", "--size=tiny", "--only=backwards"]) == 2
    assert "--only=backwards matches no contest; there are: forward odd uniform" in capsys.readouterr().err


def test_every_bar_is_measured_somewhere():
    """A bar names a measure: of a contest of its platform, or one that is counted."""
    published = [shape for shape in shapes.PUBLISHED if shape.name != "deepseek_v3"]
    on = {"cpu": (*shapes.SMALL, *shapes.MANY_EXPERTS), "cuda": published, "tpu": ()}
    for platform, bars in kernels.BARS.items():
        names = {contest.name for contest in grouped_contests.contests(tuple(on[platform]), "float32")}
        for bar in bars:
            contest = bar.measure.split(":")[0]
            assert contest in names or contest.startswith("layer ")


def test_dense_products_are_of_equal_flops():
    shape = shapes.TINY[0]
    for contest in grouped_contests.contests((shape,), "float32"):
        assert contest.flops == 2 * shape.M * shape.K * shape.N
