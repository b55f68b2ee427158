"""Who serves an op: the one asked for or none; else the first of the platform that can."""

import types

import jax.numpy as jnp
import pytest

from pallas_kernels import implementations
from pallas_kernels.errors import NotServedError


def module(platform, value, refuses: str | None = None):
    return types.SimpleNamespace(
        PLATFORM=platform, add=lambda x, *, by: x + value * by, refusal=lambda function, x, *, by: refuses
    )


TABLE = {
    "never": module("cpu", 100, "it never does"),
    "chip": module("tpu", 10),
    "here": module("cpu", 1),
    "everywhere": module(None, 2),
}


@pytest.mark.parametrize(("asked", "value"), [("chip", 20), ("everywhere", 4), ("here", 2), (None, 2)])
def test_who_serves(asked, value):
    assert implementations.run(TABLE, "add", asked, (jnp.zeros(()),), by=2) == value


def test_a_refusal_says_why_and_who_can():
    with pytest.raises(NotServedError, match=r"'never' cannot serve add\(.*\): it never does; .*'here' can"):
        implementations.run(TABLE, "add", "never", (jnp.zeros(()),), by=1)


def test_an_unknown_name():
    with pytest.raises(ValueError, match="'fast' is not one of never, chip, here, everywhere"):
        implementations.run(TABLE, "add", "fast", (jnp.zeros(()),), by=1)
