"""metrics.jsonl is valid, complete and without repeats, whatever happens to the process or the disk."""

import json
import logging
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax.training import metrics
from moejax.training.metrics import MetricsWriter


def steps(run_dir):
    return [record["step"] for record in metrics.read(run_dir)]


def test_a_line_reads_as_written():
    line = metrics.encode(7, {"train/loss": np.float32(3.41), "router/load_LE": np.full((1, 3), 1 / 3)})
    assert line == '{"step": 7, "train/loss": 3.41, "router/load_LE": [[0.333333, 0.333333, 0.333333]]}'


def test_what_is_not_finite_is_null_and_named():
    values = {"a/x": float("nan"), "a/y": -np.inf, "a/z": np.array([1.0, np.nan]), "a/n": 3}
    record = json.loads(metrics.encode(1, values), parse_constant=pytest.fail)
    assert record == {
        "step": 1,
        "a/x": None,
        "a/y": None,
        "a/z": [1.0, None],
        "a/n": 3,
        "nonfinite": {"a/x": "nan", "a/y": "-inf", "a/z": "array"},
    }


@pytest.mark.parametrize("name", ["step", "nonfinite"])
def test_a_metric_cannot_take_a_field_of_the_line(name):
    with pytest.raises(ValueError, match=f"'module/{name}'"):
        metrics.encode(1, {name: 1.0})


@settings(deadline=None, max_examples=50)
@given(st.floats(), st.floats(width=32))
def test_scalars_are_exact(wide, narrow):
    record = json.loads(metrics.encode(1, {"a/wide": wide, "a/narrow": np.float32(narrow)}))
    assert record["a/wide"] == (wide if math.isfinite(wide) else None)
    if math.isfinite(narrow):
        assert np.float32(record["a/narrow"]) == np.float32(narrow)
    else:
        assert record["a/narrow"] is None


def test_resume_drops_later_steps_and_the_torn_line(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step in (10, 20, 30, 40):
            writer.write(step, {"train/loss": step / 10})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 15, "train/lo')
    with MetricsWriter(tmp_path, resumed_step=20, tensorboard=False) as writer:
        writer.write(30, {"train/loss": 9.0})
    assert steps(tmp_path) == [10, 20, 30]
    assert metrics.read(tmp_path)[-1]["train/loss"] == 9.0


def test_a_new_run_starts_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    MetricsWriter(tmp_path, tensorboard=False).close()
    assert steps(tmp_path) == []


def test_reading_skips_what_is_not_a_record(tmp_path):
    whole = b'{"step": 1, "a/b": 2.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(b'\x00\x00\n[1]\n{"a/b": 1}\n\xff\n' + whole + b'{"step": 2}')
    assert metrics.read(tmp_path) == [{"step": 1, "a/b": 2.0}]


def test_series_of_a_metric_that_is_not_in_every_record(tmp_path):
    records = [{"step": 1, "a/b": 2.0}, {"step": 2, "c/d": 0.0}, {"step": 3, "a/b": None}]
    step_S, value_S = metrics.series(records, "a/b")
    assert step_S.tolist() == [1, 3]
    assert value_S[0] == 2.0
    assert np.isnan(value_S[1])


CHILD = """
import sys
from moejax.training.metrics import MetricsWriter
writer = MetricsWriter(sys.argv[1], tensorboard=False)
step = 0
while True:
    step += 1
    writer.write(step, {"train/loss": 1.0 / step, "router/load_LE": [[0.5] * 64] * 8})
    print(step, flush=True)
"""


def test_a_killed_process_loses_nothing_it_logged(tmp_path):
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE) as child:
        while int(child.stdout.readline()) < 50:
            pass
        child.send_signal(signal.SIGKILL)
        announced = [50, *map(int, child.stdout.read().split(b"\n")[:-1])][-1]
    found = steps(tmp_path)
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= announced


def test_a_full_disk_leaves_whole_lines_and_one_warning(tmp_path, monkeypatch, caplog):
    real = os.write
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"a/b": 1.0})
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:9]))
        writer.write(2, {"a/b": 1.0})
        writer.write(3, {"a/b": 1.0})
        assert [r.levelno for r in caplog.records] == [logging.WARNING]
        assert "9 of 24 bytes" in caplog.text
        monkeypatch.setattr(os, "write", real)
        writer.write(4, {"a/b": 1.0})
    assert "written again" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a/b": 1.0}\n{"step": 4, "a/b": 1.0}\n'


def events(run_dir):
    """(step, tag, value) of every scalar in a TensorBoard directory, read by the format's definition."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((run_dir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:  # a record: length u64, its crc u32, payload, its crc u32
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_tensorboard_takes_the_scalars(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(5, {"train/loss": 2.5, "router/load_LE": np.ones((2, 2))})
        assert events(tmp_path) == [(5, "train/loss", 2.5)]  # visible while the run goes on


def test_a_broken_tracker_costs_one_warning(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("in the way")
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a/b": 1.0})
        writer.write(2, {"a/b": 1.0})
    assert steps(tmp_path) == [1, 2]
    assert caplog.text.count("TensorBoard is not written") == 1


def test_a_missing_tracker_costs_one_warning(tmp_path, caplog, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a/b": 1.0})
    assert steps(tmp_path) == [1]
    assert caplog.text.count("TensorBoard is not written") == 1
