"""Counts, pace and percentiles by hand."""

import io
import json

import pytest

from moejax.errors import StorageError
from moejax.serving.completion import Completion, Timing
from moejax.serving.tally import Progress, Tally, write_summary


def completion(tokens, timing=None):
    return Completion("", (5,) * tokens, "length", 10, timing=timing)


def test_worked_example():
    tally = Tally(now=100.0, total=8, before=2, errors=1)
    assert tally.left(101.0) is None
    tally.add(completion(4, Timing(1.0, 4.0, 6)))
    tally.add(completion(1, Timing(2.0, 2.0, 0)))
    tally.add(None)
    assert tally.counts(110.0) == "requests=5 errors=2 prompt_tokens=20 tokens=5 seconds=10.0 tok/s=0"
    assert tally.left(106.0) == 6.0  # three in six seconds, three are left
    assert tally.line(106.0).endswith(" tok/s=1 total=8 left=6s")
    found = tally.summary(110.0)
    assert found == {
        "requests": 5,
        "errors": 2,
        "answered_before": 2,
        "prompt_tokens": 20,
        "completion_tokens": 5,
        "seconds": 10.0,
        "requests_per_second": 0.3,
        "completion_tokens_per_second": 0.5,
        "time_to_first_token": {"p50": 1.5, "p90": 1.9, "p99": 1.99},
        "time_per_output_token": {"p50": 1.0, "p90": 1.0, "p99": 1.0},
        "cached_prompt_tokens": 6,
    }
    assert tally.closing(110.0) == [
        f"done: {tally.counts(110.0)}",
        "ttft_p50=1500.0ms ttft_p90=1900.0ms ttft_p99=1990.0ms",
        "tpot_p50=1000.0ms tpot_p90=1000.0ms tpot_p99=1000.0ms",
        "cached_prompt_tokens=6 of 20",
    ]


def test_what_nobody_measured_is_left_out():
    tally = Tally(now=0.0)
    tally.add(completion(3))
    tally.add(completion(3, Timing(1.0, 2.0)))
    assert set(tally.summary(1.0)) & {"cached_prompt_tokens"} == set()
    assert tally.line(1.0) == tally.counts(1.0)
    assert Tally(now=0.0).closing(1.0) == [
        "done: requests=0 errors=0 prompt_tokens=0 tokens=0 seconds=1.0 tok/s=0"
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_and_others_get_lines(monkeypatch):
    monkeypatch.setattr("moejax.serving.tally.REPORT_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        with Progress(Tally(now=0.0, total=2), stream) as progress:
            progress.add(completion(1))
            progress.add(completion(1))
    assert [line.split()[0] for line in plain.getvalue().splitlines()] == ["requests=1", "requests=2"]
    assert "\x1b[" in terminal.getvalue() and "requests=" not in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


def test_a_summary_is_a_file_of_its_own(tmp_path):
    write_summary(None, {})
    write_summary(str(tmp_path / "s.json"), {"requests": 1})
    assert json.loads((tmp_path / "s.json").read_text()) == {"requests": 1}
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"--summary=.*folder cannot be written"):
        write_summary(str(tmp_path / "folder"), {})
