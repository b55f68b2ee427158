"""The progress line can be parsed, its ETA survives a bad clock, and trouble is named in words, once."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax.training.health import Health, HealthState, effective_experts
from moejax.training.progress import Pace, Progress, duration, evaluation_line, report_line

STEP = {
    "train/loss": 3.4119,
    "speed/tokens_per_s": 4512.4,
    "speed/flops_per_s": 61.2e9,
    "time/step_s": 0.5,
    "time/data_s": 0.002,
    "router/load_max": 1.314,
    "router/dropped": 0.0,
}


def parse(line):
    return dict(pair.split("=") for pair in line.split())


def paced(times):
    pace = Pace()
    for step, now in times:
        pace = pace.observe(step, now)
    return pace


def test_the_line_by_hand():
    assert report_line(120, 1500, STEP, eta=252.0) == (
        "step=120/1500 loss=3.412 tok/s=4512 gflop/s=61.2 data_wait=0.4% eta=4m12s load_max=1.31 dropped=0.0%"
    )


def test_a_known_peak_turns_flops_into_a_utilisation():
    assert parse(report_line(1, 2, STEP, eta=None, peak_flops=122.4e9))["mfu"] == "50.0%"
    assert "mfu" not in parse(report_line(1, 2, STEP, eta=None))


def test_absent_metrics_are_left_out():
    assert report_line(1, 2, {}, eta=None) == "step=1/2"


def test_skipped_updates_are_shown_when_there_are_any():
    assert report_line(1, 2, {"health/skipped": 0}, eta=1.0) == "step=1/2 eta=1s"
    assert report_line(1, 2, {"health/skipped": 3}, eta=1.0) == "step=1/2 eta=1s skipped=3"


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.sampled_from(sorted(STEP)), st.floats()), st.floats(0, 1e9))
def test_any_numbers_give_one_parsable_line(metrics, eta):
    line = report_line(1, 2, metrics, eta)
    assert "\n" not in line
    assert parse(line)["step"] == "1/2"


def test_the_evaluation_line():
    line = evaluation_line(
        100, {"eval/loss": 2.5, "eval/bits_per_byte": 1.9}, {"gzip -9": 2.1, "xz -9": 1.85}
    )
    assert parse(line) == {
        "step": "100",
        "held_out_loss": "2.500",
        "held_out_bits_per_byte": "1.900",
        "gzip-9": "2.100",
        "xz-9": "1.850",
    }


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0s"), (59.4, "59s"), (59.6, "1m00s"), (252, "4m12s"), (11220, "3h07m"), (190800, "2d05h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_eta_by_hand():
    # 10 steps in 5 s and 10 in 7 s: 0.6 s per step, 30 steps to go
    assert paced([(0, 100.0), (10, 105.0), (20, 112.0)]).remaining(50) == pytest.approx(18.0)
    assert paced([(0, 100.0)]).remaining(50) is None
    assert paced([(0, 0.0), (60, 1.0)]).remaining(50) == 0


@pytest.mark.parametrize("jump", [86400.0, -86400.0])
def test_eta_survives_a_clock_that_jumps_a_day(jump):
    times = [(step, step * 1.0 + (jump if step > 50 else 0.0)) for step in range(0, 101, 10)]
    assert paced(times).remaining(200) == pytest.approx(100.0, rel=1.0)


def test_eta_counts_evaluations_in():
    # one report in four holds an evaluation of 20 s: 30 s per 40 steps of 1 s each, that is 1.5 s per step
    now, times = 0.0, [(0, 0.0)]
    for report in range(1, 9):
        now += 10.0 + (20.0 if report % 4 == 0 else 0.0)
        times.append((report * 10, now))
    assert paced(times).remaining(90) == pytest.approx(15.0)


def observe_all(loads, health=None, losses=()):
    health, state, said = health or Health(patience=3), HealthState(), []
    for step, load_LE in enumerate(loads):
        state, words = health.observe(state, step, {"router/load_LE": np.array(load_LE)})
        said.append(words)
    return health, state, said


EVEN = [[0.25, 0.25, 0.25, 0.25]]
ONE_DEAD = [[0.0, 0.4, 0.3, 0.3]]


def test_an_expert_dies_once_and_comes_back_once():
    health, state, said = observe_all([EVEN, ONE_DEAD, ONE_DEAD, ONE_DEAD, ONE_DEAD, EVEN, EVEN])
    assert [len(words) for words in said] == [0, 0, 0, 1, 0, 1, 0]
    assert "layer 0 expert 0 received 0.0% of the tokens for the last 3 reports" in said[3][0]
    assert "balance loss" in said[3][0]
    assert said[5] == ["layer 0 expert 0 receives 25.0% of the tokens again"]
    assert health.num_dead(state) == 0


def test_a_pause_in_starving_starts_the_count_again():
    _, _, said = observe_all([ONE_DEAD, ONE_DEAD, EVEN, ONE_DEAD, ONE_DEAD])
    assert not any(said)


def test_the_dead_share_is_relative_to_the_even_share():
    health = Health(patience=1)
    assert health.num_dead(observe_all([[[0.0024, 0.3, 0.3, 0.3976]]], health)[1]) == 1  # 0.0096 of 1/4
    assert health.num_dead(observe_all([[[0.0026, 0.3, 0.3, 0.3974]]], health)[1]) == 0
    assert health.num_dead(HealthState()) is None


def test_a_collapsing_layer_is_named_with_its_greedy_expert():
    collapsed = [[0.25] * 4, [0.97, 0.01, 0.01, 0.01]]
    _, _, said = observe_all([collapsed] * 4 + [[[0.25] * 4] * 2])
    assert [len(words) for words in said] == [0, 0, 1, 0, 1]
    assert "layer 1 used only 1.2 of its 4 experts" in said[2][0]
    assert "expert 0 takes 97.0%" in said[2][0]
    assert said[4] == ["layer 1 uses 4.0 of its 4 experts again (effective number)"]


def test_effective_experts_by_hand():
    np.testing.assert_allclose(effective_experts(np.array([[0.5, 0.5, 0, 0], [1.0, 0, 0, 0]])), [2, 1])


def test_loads_that_are_not_finite_change_nothing():
    state = observe_all([ONE_DEAD, ONE_DEAD])[1]
    after, words = Health(patience=3).observe(state, 9, {"router/load_LE": np.full((1, 4), np.nan)})
    assert after is state
    assert words == []


def losses_said(losses):
    health, state, said = Health(), HealthState(), []
    for step, loss in enumerate(losses):
        state, words = health.observe(state, step, {"train/loss": loss})
        said += words
    return said


def test_a_loss_spike_is_named_once_and_its_end_too():
    assert losses_said([3.0, 3.1] * 10 + [5.0, 5.2, 3.05]) == [
        "the loss jumped to 5.000 at step 20, from a median of 3.050; "
        "if it stays, lower the learning rate or clip harder",
        "the loss is back at 3.050",
    ]


def test_a_loss_that_is_not_finite_is_named_once():
    assert losses_said([3.0, float("nan"), float("nan"), 3.0]) == [
        "the loss is nan at step 1",
        "the loss is back at 3.000",
    ]


def test_ordinary_descent_is_silent():
    noise = np.random.default_rng(0).normal(0, 0.05, 400)
    assert losses_said((8.0 * np.exp(-np.arange(400) / 80) + 2 + noise).tolist()) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def printed(stream):
    progress = Progress(100, health=Health(patience=1), stream=stream)
    progress.start(0, 0.0)
    metrics = {"train/loss": 3.0, "router/load_LE": np.array(ONE_DEAD)}
    return progress.report(10, metrics, 5.0), stream.getvalue()


def test_lines_are_plain_where_there_is_no_terminal():
    warnings, text = printed(io.StringIO())
    assert text == f"step=10/100 loss=3.000 eta=45s dead=1\nwarning: {warnings[0]}\n"


def test_colour_on_a_terminal_but_not_with_no_color(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in printed(Terminal())[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in printed(Terminal())[1]


def test_a_closed_output_does_not_stop_the_run():
    stream = io.StringIO()
    progress = Progress(100, stream=stream)
    stream.close()
    progress.say("nobody hears this")
    progress.report(1, {"train/loss": 1.0}, 1.0)
