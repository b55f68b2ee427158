"""Latencies of steps and waits of prompts: published numbers, then fits that find what they were given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.analysis import pool_latency
from moejax.analysis.pool_latency import DecodeTime, Latency, PrefillTime
from moejax.errors import UsageError
from tests.analysis.opt_13b import ONE, TWO


def test_published_fits():
    """Milliseconds of OPT-13B on an A100."""
    assert ONE.prefill(512, 512**2) == pytest.approx(72.149e-3, abs=5e-7)
    assert ONE.prefill(512, 2 * 256**2) == pytest.approx(71.215e-3, abs=1e-6)
    assert TWO.prefill(512, 512**2) == pytest.approx(50.497e-3, abs=1e-6)
    assert ONE.prefill(512, 512**2) / TWO.prefill(512, 512**2) == pytest.approx(1.429, abs=5e-4)
    assert ONE.decode_step(32 * 512, 32) == pytest.approx(31.439e-3, abs=5e-7)
    assert ONE.decode_step(64 * 512, 64) == pytest.approx(42.943e-3, abs=5e-7)


@pytest.mark.parametrize(
    "rate, wanted",
    [(1, (0.1056, 0.1013, 0.0646)), (5, (0.15, 0.1083, 0.0767)), (9, (0.55, 0.1205, 0.1027))],
)
def test_waits_by_hand(rate, wanted):
    """Prompts of 0.1 s on one device, on two in a row, on two that share and are 1.6 times as fast."""
    waits = (
        pool_latency.wait_one(0.1, rate),
        pool_latency.wait_pipeline(0.1, rate),
        pool_latency.wait_tensor(0.1, rate, 1.6),
    )
    assert waits == pytest.approx(wanted, abs=5e-5)


@pytest.mark.parametrize("speedup, load", [(1.2, 0.434), (1.4, 0.776), (1.6, 1.095), (1.8, 1.429)])
def test_crossover_by_hand(speedup, load):
    found = pool_latency.crossover(speedup)
    assert found == pytest.approx(load, abs=5e-4)
    assert pool_latency.wait_tensor(1, found, speedup) == pytest.approx(pool_latency.wait_pipeline(1, found))


@pytest.mark.parametrize("wait", [pool_latency.wait_one, pool_latency.wait_pipeline])
def test_a_queue_without_end(wait):
    with pytest.raises(UsageError, match=r"rate \* time = 2 must be below"):
        wait(0.1, 20)


def test_the_second_line_begins_at_95_requests():
    both = Latency(PrefillTime(0, 1, 0), DecodeTime(1, 0, 0), DecodeTime(7, 0, 0))
    assert [both.decode_step(0, n) for n in (94, 95)] == [1, 7]
    slower = both.with_overhead(2e-3, 1e-6)
    assert slower.decode_step(1000, 95) == pytest.approx(7.003)
    assert slower.prefill(1000, 0) == pytest.approx(1000.003)


def test_experts_that_are_met_by_hand():
    """One token meets k; two meet 2 + 2 * 6/8 of 8."""
    assert pool_latency.touched(1, 8, 2) == pytest.approx(2)
    assert pool_latency.touched(2, 8, 2) == pytest.approx(3.5)
    assert DecodeTime(1, 0, 0, 0.5, 8, 2)(100, 2) == pytest.approx(2.75)


positive = st.floats(1e-3, 10)


@given(positive, positive, positive, st.integers(0, 99))
def test_fits_find_what_they_were_given(step, token, square, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 100, size=12)
    squares = tokens * rng.integers(1, 30, size=12)
    wanted = PrefillTime(step, token, square)
    found = pool_latency.fit_prefill(
        tokens, squares, [wanted(*row) for row in zip(tokens, squares, strict=True)]
    )
    np.testing.assert_allclose([found.step, found.token, found.square], [step, token, square], rtol=1e-6)


def test_decode_fits_find_experts_and_both_lines():
    rng = np.random.default_rng(0)
    requests = rng.integers(1, 94, size=40)
    context = requests * rng.integers(10, 100, size=40)
    wanted = DecodeTime(1.0, 0.01, 0.05, 0.3, 16, 2)
    seconds = [wanted(*row) for row in zip(context, requests, strict=True)]
    found = pool_latency.fit_decode(context, requests, seconds, 16, 2)
    np.testing.assert_allclose(
        [found.step, found.context, found.request, found.expert], [1.0, 0.01, 0.05, 0.3], rtol=1e-6
    )
    assert pool_latency.fit_decode_pair(context, requests, seconds)[1] is None
    requests = np.append(requests, [95, 100, 120, 300])
    context = np.append(context, [95, 10000, 500, 2000])
    lines = DecodeTime(1.0, 0.01, 0.05), DecodeTime(3.0, 0.02, 0.01)
    seconds = [lines[int(n >= 95)](c, n) for c, n in zip(context, requests, strict=True)]
    for line, found in zip(lines, pool_latency.fit_decode_pair(context, requests, seconds), strict=True):
        np.testing.assert_allclose(
            [found.step, found.context, found.request], [line.step, line.context, line.request], rtol=1e-6
        )


def test_no_coefficient_is_negative():
    """The unbounded line through these falls with the square; the best of at least 0 has none."""
    tokens, seconds = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 2.8, 3.4])
    found = pool_latency.fit_prefill(tokens, tokens**2, seconds)
    assert found.square == 0 and found.step >= 0
    columns = np.stack([np.ones(4), tokens], -1) / seconds[:, None]
    best = np.linalg.lstsq(columns, np.ones(4), rcond=None)[0]
    assert (found.step, found.token) == pytest.approx(tuple(best))


def test_steps_that_are_too_alike():
    with pytest.raises(UsageError, match="4 measured steps tell 2 of 3 coefficients apart"):
        pool_latency.fit_prefill([1, 2, 3, 4], [2, 4, 6, 8], [1, 2, 3, 4])
