"""Which loss the held-out text is measured by."""

import types

import pytest

from moejax.errors import UsageError
from moejax.losses.z_loss import RouterZ
from moejax.training.evaluation import Evaluator


def test_a_run_without_a_loss_that_measures_text_is_refused():
    run = types.SimpleNamespace(model=None, train=types.SimpleNamespace(losses=(RouterZ(),)))
    with pytest.raises(UsageError, match=r"config\.train\.losses holds RouterZ.*add NextToken\(\)"):
        Evaluator(types.SimpleNamespace(run=run, losses=(RouterZ(),)), corpus=None)
