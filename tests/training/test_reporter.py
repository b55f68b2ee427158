"""What is said of updates that were skipped."""

import dataclasses

import jax.numpy as jnp

from configs import base
from moejax.training import metrics
from moejax.training.reporter import SKIPS_SAID, Reporter

QUIET = dataclasses.replace(base.tiny().train, log_every=1000, steps=1000)


def outcome(loss: float, skipped: int) -> dict:
    return {
        "train/loss": jnp.float32(loss),
        "train/grad_norm": jnp.float32(1.5),
        "health/skipped": jnp.int32(skipped),
        "health/bad_gradients": jnp.array([False, skipped > 0]),
    }


def test_a_skipped_update_is_told_on_any_step(tmp_path, capsys):
    reporter = Reporter(QUIET, tmp_path, 0, 0.0, 1.0)
    for step, (loss, skipped) in enumerate([(3.0, 0), (float("nan"), 1), (9.0, 2), (3.0, 0)], start=1):
        reporter.after(step, outcome(loss, skipped), 0.0)
    assert reporter.skipped == 2  # as of the step before the latest
    assert reporter.bad_gradients.tolist() == [False, True]
    reporter.flush()
    assert reporter.skipped == 0
    assert capsys.readouterr().out.splitlines() == [
        "warning: the update of step 2 was skipped, not finite: loss nan, gradient norm 1.5 "
        "(1 in a row, 1 since the start)",
        "warning: the update of step 3 was skipped, a spike: loss 9, gradient norm 1.5 "
        "(2 in a row, 2 since the start)",
    ]
    reporter.close()


def test_many_skips_are_counted_more_than_told(tmp_path, capsys):
    reporter = Reporter(QUIET, tmp_path, 0, 0.0, 1.0)
    for step in range(1, 4 * SKIPS_SAID + 1):
        reporter.after(step, outcome(float("inf"), 1), 0.0)
    reporter.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == SKIPS_SAID + 3 + 1
    assert lines[-1] == f"warning: {4 * SKIPS_SAID} updates were skipped since the start"
    assert metrics.read(tmp_path) == []
