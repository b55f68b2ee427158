"""Sharing a device between phases: numbers to redo by hand, then the search against all shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.analysis import phase_split_plan
from moejax.analysis.phase_split_plan import Device, Operator, Rule, Shape, Split
from moejax.errors import UsageError


def decode(share):
    return 20 * max(40 / share, 1)


def prefill(share):
    return 100 * max(60 / share, 1)


@pytest.mark.parametrize("attending, wanted, seconds", [(0, 375, 1.6), (0.25, 468.75, 1.28), (1, 750, 0.8)])
def test_bandwidth_by_hand(attending, wanted, seconds):
    found = phase_split_plan.contended_bandwidth(1000, 600, 200, 1000, attending)
    assert found == wanted and 600 / found == pytest.approx(seconds)


def test_without_prefill_decoding_has_the_memory():
    assert phase_split_plan.contended_bandwidth(1000, 600, 0, 0, 0.3) == pytest.approx(1000)
    reads = (Operator(0, 600, attends=True),)
    assert phase_split_plan.decode_time(reads, 0.5, Device(1, 1000)) == pytest.approx(0.6)


def test_phases_by_hand():
    """Prefill on half the device: attention 200 flops / (100 * 0.5) = 4 s, the rest 12 s; so P = 1/4."""
    device = Device(flops=100, bandwidth=1000)
    reading = (Operator(200, 200, attends=True), Operator(600, 1000))
    assert phase_split_plan.prefill_time(reading, 0.5, device) == pytest.approx(4 + 12)
    writing = (Operator(10, 600, attends=True), Operator(5, 2000))
    # 1.28 s of contended attention, and 2 s of weights at full bandwidth.
    assert phase_split_plan.decode_time(writing, 0.5, device, reading) == pytest.approx(1.28 + 2)
    # With a tenth of the device attention is still bound by memory, the rest too.
    assert phase_split_plan.decode_time(writing, 0.1, device, reading) == pytest.approx(1.28 + 2)
    assert phase_split_plan.decode_time(writing, 0.01, device, reading) == pytest.approx(10 + 5)


def test_diminishing_returns_by_hand():
    device = Device(1, 1, saturation=0.5, decay=0.2)
    assert [device.used(share) for share in (0.25, 0.5, 1.0)] == pytest.approx([0.25, 0.5, 0.6])


@given(st.integers(15, 85), st.floats(0.05, 0.9))
def test_saturation_is_found(percent, decay):
    device = Device(1, 1, percent / 100, decay)
    shares = np.linspace(0.05, 1, 20)
    found = phase_split_plan.fit_saturation(shares, [7 / device.used(share) for share in shares])
    np.testing.assert_allclose(found, (percent / 100, decay), atol=1e-6)


def test_one_bend_needs_three_shares():
    with pytest.raises(UsageError, match="time at least three"):
        phase_split_plan.fit_saturation([0.5, 1], [2, 1])


@pytest.mark.parametrize("now", [50, 90, 10])
def test_the_split_by_hand(now):
    """Decoding needs 40 / 1.1 -> 37 percent, prefill 60 / 1.3 -> 47."""
    assert phase_split_plan.choose(prefill, decode, 0.5, now, Rule()) == Split(63)
    assert phase_split_plan.choose(prefill, decode, 0.8, now, Rule()) == Split(47)
    assert Split(47).decode == 53


def test_slacks_that_ask_for_more_than_there_is():
    """Prefill needs 77 percent and decoding 37; either favour would leave one with less than it may have."""
    linear = lambda share: 100 * 100 / share
    assert phase_split_plan.favour(decode, 1.1, 50) == 63
    assert 100 - phase_split_plan.favour(linear, 1.3, 50) == 77
    for usage in (0.5, 0.8):
        split = phase_split_plan.choose(linear, decode, usage, 50, Rule())
        assert split == Split(68, compatible=False)  # 100 * 77 / (77 + 37) = 67.5


@given(st.floats(1, 99), st.floats(1.01, 3), st.integers(0, 100), st.integers(1, 20))
def test_the_search_finds_what_trying_all_finds(knee, slack, start, least):
    other = lambda share: max(knee / share, 1)
    allowed = [share for share in range(least, 101 - least) if other(100 - share) <= slack * other(100)]
    assert phase_split_plan.favour(other, slack, start, least) == max(allowed, default=least)


def test_a_share_that_nobody_can_have():
    """The other's time off the whole device is never allowed: the search ends at the least share."""
    assert phase_split_plan.favour(lambda share: 1.0 if share == 100 else 9.0, 1.1, 50, least=3) == 3


def test_a_warm_search_asks_seldom():
    asked = []
    other = lambda share: asked.append(share) or decode(share)
    phase_split_plan.favour(other, 1.1, 62)
    assert len(asked) <= 4


def test_small_changes_are_not_made():
    applied, seen = 50, []
    for target in (53, 56, 49, 44):
        applied = phase_split_plan.settle(applied, target, 5)
        seen.append(applied)
    assert seen == [50, 56, 49, 49]


def test_no_change_under_constant_load():
    """Whatever the start, the second choice is the first."""
    shape = Shape(1e8, 1e7, 8, 2, 1e5, 1e5)
    device = Device(1e13, 1e12, 0.6, 0.2)
    reading = shape.operators(512, 512 * 1024, 1024)
    writing = shape.operators(32, 32 * 800, 32 * 800)
    times = (
        lambda percent: phase_split_plan.prefill_time(reading, percent / 100, device),
        lambda percent: phase_split_plan.decode_time(writing, percent / 100, device, reading),
    )
    for start in (5, 50, 95):
        first = phase_split_plan.choose(*times, 0.5, start, Rule())
        assert phase_split_plan.choose(*times, 0.5, first.prefill, Rule()) == first


def test_operators_by_hand():
    """Two tokens that pick 2 of 8 experts meet 3.5 of them."""
    dense, experts, attention = Shape(100, 10, 8, 2, 3, 5).operators(2, 6, 4)
    assert dense == Operator(400, 200) and attention == Operator(30, 12, attends=True)
    assert (experts.flops, experts.bytes) == (80, pytest.approx(2 * 35))
