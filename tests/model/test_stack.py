"""What all layers have in common is computed once per pass."""

import dataclasses
import re

import jax
import pytest

from moejax.config import BlockConfig, Group
from moejax.model.forward import forward
from tests.contracts import tiny

SINE = re.compile(r"= \S+ sine\(")


@pytest.mark.parametrize("scan", [True, False])
def test_a_pass_takes_the_sines_of_every_rotation_once(scan):
    """Four layers whose positions turn alike and two that turn otherwise; a fusion would repeat them."""
    other = dataclasses.replace(tiny.ATTN, rope_theta=500.0)
    groups = Group((BlockConfig(tiny.ATTN, tiny.MOE),), 2), Group((BlockConfig(other, tiny.MOE),), 2)
    m = dataclasses.replace(tiny.model(scan=scan), groups=(*groups, groups[0]))
    run = jax.jit(lambda params, batch: forward(params, m, batch).logits_BTV)
    text = run.lower(tiny.params(m), tiny.batch(0)).compile(tiny.QUICK_COMPILE).as_text()
    assert len(SINE.findall(text)) == 2
