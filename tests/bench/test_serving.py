"""Replays, small; and what users notice, by hand."""

import json

import numpy as np
import pytest

from moejax import flags
from moejax.bench import serving, serving_outcome
from moejax.bench.serving_outcome import Slo
from moejax.errors import UsageError
from moejax.serving.engine import serve
from moejax.serving.pages import Pages
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.simulated import Latency, Simulated
from moejax.serving.state import Job, ServeState


def test_an_outcome_by_hand():
    """A is read from 2 to 3 and then writes; B comes at 2.5, is read from 3 to 4, and A waits for it.

    Then both write once, and A once more. A waits 1 s for its first token, then 2, 1, 1; B 1.5, 1.
    """
    jobs = [Job(0, (1, 2), 4, arrival=2.0), Job(1, (1, 2), 2, arrival=2.5)]
    state = ServeState(2, Pages(8, 1), 1)
    steps = serve(jobs, Fcfs(), Simulated(Latency(fixed=1.0), 1), state, ahead=0)
    outcome = serving_outcome.watch(steps, Slo(ttft=1.5, tbt=1.5))
    assert outcome.first.tolist() == [1.0, 1.5]
    assert sorted(outcome.gaps.tolist()) == [1.0, 1.0, 1.0, 2.0]
    assert (outcome.attained, outcome.requests, outcome.tokens, outcome.steps) == (1, 2, 6, 5)
    assert outcome.seconds == 5.0
    assert (outcome.prompt_tokens, outcome.found_tokens, outcome.restarts) == (4, 1, 0)
    measures = {measure.name: measure.value for measure in outcome.measures("x")}
    assert measures["x: goodput"] == 0.2 and measures["x: in time"] == 0.5
    assert measures["x: written"] == 1.2 and measures["x: found in the cache"] == 0.25


@pytest.fixture
def trace(tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        json.dumps({
            "timestamp": 40 * i, "input_length": int(rng.integers(1, 1024)), "output_length": 5 + i % 9,
            "hash_ids": [0, i],
        })
        for i in range(19)
    ]  # fmt: skip
    lines = [line for line in lines if json.loads(line)["input_length"] > 512]
    lines.append(
        json.dumps({"timestamp": 0, "input_length": 5000, "output_length": 5, "hash_ids": list(range(10))})
    )
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "m.jsonl")


def test_every_scheduler_replays_a_trace(trace):
    report = serving.run(serving.tiny(trace))
    value = {measure.name: measure.value for measure in report.measures}
    assert all(np.isfinite(x) for x in value.values())
    assert report.notes == ("1 requests are larger than the cache and were left out",)
    for name in serving.SCHEDULERS:
        assert value[f"{name}: found in the cache"] > 0.2 and value[f"{name}: experts loaded"] > 0
    assert report.holds is (value[serving.TAIL] >= 1.5 and value[serving.PACE] >= 0.75)
    assert value[serving.TAIL] == value["fcfs: TBT P99"] / value["chunked: TBT P99"] > 1
    again = serving.run(serving.tiny(trace))
    assert [m.value for m in again.measures] == [m.value for m in report.measures]


def test_the_door(trace, tmp_path, capsys):
    latency = tmp_path / "l.json"
    latency.write_text('{"fixed": 0.01, "row": 1e-5}')
    arguments = [f"--trace={trace}", "--scheduler=fcfs,layered", f"--latency={latency}", "--experts=0"]
    assert flags.main(serving.PROGRAM, [*arguments, f"--json={tmp_path / 'r.json'}"]) == 0
    told = capsys.readouterr().out
    assert "layered: TBT P99" in told and "is undecided" in told and "chunked:" not in told
    assert json.loads((tmp_path / "r.json").read_text())["settings"]["latency"]["row"] == 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --trace=FILE"),
        (["--trace=x.csv", "--scheduler=chuncked"], "did you mean chunked"),
        (["--trace=x.csv", "--latency=slow"], "--latency=slow is neither one of qwen3-30b-h100"),
        (["--trace=x.csv", "--speed=0"], "--speed=0.0 must be above 0"),
    ],
)
def test_wrong_flags(arguments, message, capsys):
    assert flags.main(serving.PROGRAM, arguments) == 2
    assert message in capsys.readouterr().err


def test_a_latency_that_is_none(tmp_path):
    (tmp_path / "l.json").write_text('{"slow": 1}')
    with pytest.raises(UsageError, match="must be a JSON object with seconds for any of fixed, row, expert"):
        serving.latency_of(str(tmp_path / "l.json"))
