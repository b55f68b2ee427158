"""Settings that cannot work are refused when they are made, by their path and value."""

import dataclasses

import pytest

from configs import base
from moejax import overrides
from moejax.errors import UsageError


def test_smallest_values():
    run = base.tiny()
    texts = {"train.eval_every": "0", "train.watchdog_seconds": "0", "train.optim.warmup_steps": "0"}
    changed = overrides.apply(run, texts | {"train.optim.b1": "0", "train.log_every": "1"})
    assert (changed.train.eval_every, changed.train.optim.b1) == (0, 0.0)


@pytest.mark.parametrize(
    "path, text",
    [
        ("train.steps", "0"),
        ("train.batch_rows", "0"),
        ("train.accumulate", "0"),
        ("train.log_every", "0"),
        ("train.eval_rows", "0"),
        ("train.max_skipped", "0"),
        ("train.seed", "-1"),
        ("train.eval_every", "-1"),
        ("train.verify_every", "-2"),
        ("train.watchdog_seconds", "-0.5"),
        ("train.optim.warmup_steps", "-5"),
        ("train.optim.b1", "1.0"),
        ("train.optim.b2", "-0.1"),
        ("train.optim.eps", "0"),
        ("train.optim.weight_decay", "-1"),
        ("train.optim.final_fraction", "1.5"),
    ],
)
def test_values_that_cannot_work(path, text):
    with pytest.raises(UsageError) as refusal:
        overrides.override(base.tiny(), path, text)
    assert path in str(refusal.value)
    assert text.rstrip("0").rstrip(".") in str(refusal.value)


def test_a_batch_must_split():
    run = base.tiny()
    with pytest.raises(UsageError, match=r"train.batch_rows=\d+ is not divisible by train.accumulate=7"):
        dataclasses.replace(run.train, accumulate=7)
