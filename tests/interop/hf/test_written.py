"""Numbers of a config.json come back as they were read."""

import math

import pytest

from moejax.attention.gqa import Gqa
from moejax.interop.hf import written
from moejax.ops.rope import Interpolation


@pytest.mark.parametrize("number", [1.4, 6.0, 49.0, 93.0, 0.22])
def test_a_number_is_found_by_what_followed_from_it(number):
    """1 / (1 / 49) is not 49."""
    inverse, root = 1 / number, math.sqrt(27)
    assert written.solved(1 / inverse, inverse, lambda x: 1 / x) == number
    assert written.solved(number / root * root, number / root, lambda x: x / root) == number


def test_what_cannot_be_found_stays_the_guess():
    assert written.solved(0.1, 2.0, lambda x: x) == 0.1


def test_positions_of_older_files():
    plain = {"rope_theta": 5.0, "rope_scaling": None}
    assert written.positions(Gqa(2, 2, 4, rope_theta=5.0)) == plain
    scaled = Gqa(2, 2, 4, rope_theta=5.0, rope_scaling=Interpolation(2.0))
    assert written.positions(scaled) == plain | {"rope_scaling": {"type": "linear", "factor": 2.0}}
