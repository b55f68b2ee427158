"""The benchmark of shortest prompts first: all of it in small, and its queue by hand."""

import json

import numpy as np

from moejax.bench import __main__ as door
from moejax.bench import phase_split
from moejax.serving.state import Job


def test_all_of_it(tmp_path):
    path = tmp_path / "report.json"
    assert door.main(["phase_split", "--size=tiny", f"--json={path}"]) == 0
    report = json.loads(path.read_text())
    value = {measure["name"]: measure["value"] for measure in report["measures"]}
    assert report["holds"] and np.isfinite(list(value.values())).all()
    assert value["gamma 15: longest wait"] > value["first come: longest wait"]


def test_a_queue_by_hand():
    """4000 and then 800 positions, 2000 a step, at 8000 per second: 0.5 s and 0.6 s, or 0.6 s and 0.35 s."""
    jobs = [Job(0, (0,) * 4000, 1, 0.0), Job(1, (0,) * 800, 1, 0.1)]
    first_come = phase_split.waits(jobs, phase_split.OLDEST, 2000)
    np.testing.assert_allclose(first_come, [0.5, 0.5])
    shortest = phase_split.waits(jobs, 0.0, 2000)
    np.testing.assert_allclose(shortest, [0.6, 0.25])


def test_load_is_what_it_says():
    cfg = phase_split.PhaseSplitStudy(requests=4000)
    jobs = phase_split.mixed(cfg, seed=0)
    load = sum(len(job.prompt) for job in jobs) / phase_split.RATE / jobs[-1].arrival
    assert abs(load - cfg.load) < 0.06
