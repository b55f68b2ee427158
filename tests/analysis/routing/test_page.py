"""The page draws every chapter of any trace, escapes what it must, and loads nothing."""

import dataclasses
import re

import numpy as np
import pytest

from moejax.analysis.routing.page import render
from moejax.analysis.routing.summary import summarise
from tests.analysis.routing import traces
from tests.report.outline import Outline

EVIL = "</h1><script>alert(1)</script>"


def page(trace, others=(), texts=None):
    return render(summarise(trace, others), trace, texts or {})


@pytest.fixture(scope="module")
def trace():
    found = dataclasses.replace(traces.random(0, tokens=300), name="run", step=20)
    return found.labelled(found.token_N % 2, ("odd", "even"))


def test_figures_by_hand():
    """Four tokens, two experts, one each, always in turn."""
    text = page(traces.one_layer([0, 1] * 8, 2, token=[3, 4] * 8, text=np.repeat([0, 1], 8)))
    assert "<b>16</b><span>tokens</span>" in text
    assert "<b>0.0%</b><span>of the choices dropped</span>" in text
    assert "<td>Layer 0</td><td>+0.0%</td><td>2.00 of 2</td>" in text
    assert "No choice was dropped" in text and "There is one checkpoint only" in text
    # SRP of windows of 4: every expert is used twice in each
    assert "<td>Layer 0</td><td>4</td><td>0.667</td>" in text
    # TLS 1/2, no text of 32 tokens; nothing is reused
    assert "<td>50.0%</td><td>0.0% (0.4%)</td><td>- (0.0%)</td><td>0.0% (50.0%)</td>" in text


def test_every_chapter_of_a_full_trace(trace):
    earlier = dataclasses.replace(traces.random(1, tokens=300), step=10)
    same = dataclasses.replace(trace, step=15, expert_LNK=traces.random(2, tokens=300).expert_LNK)
    text = page(trace, [earlier, same], {0: "def"})
    Outline(text)
    for words in ("&#x27;def&#x27;", "choice 2", "odd", "step 10", "step 15", "Belady", "SRP"):
        assert words in text
    assert "Not recorded" not in text and "has no" not in text


def test_hostile_text_stays_text(trace):
    evil = dataclasses.replace(trace, name=EVIL).labelled(trace.label_N, (EVIL, "x"))
    tame, hostile = Outline(page(trace)), Outline(page(evil, texts={0: EVIL}))
    assert hostile.tags == tame.tags
    assert not [tag for tag in ("src", "href") if any(name == tag for name, _ in hostile.attributes)]


@pytest.mark.parametrize(
    "odd",
    [
        traces.one_layer([0], 1),
        traces.one_layer([[2, 2], [0, 1]], 2, text=[0, 1]),
        traces.one_layer([[2, 2]] * 3, 2),
        traces.random(3, layers=3, tokens=20, experts=9, slots=5),
    ],
    ids=["one token", "a token without experts", "no expert at all", "more slots than colours"],
)
def test_odd_traces_are_borne(odd):
    text = page(odd)
    Outline(text)
    assert "<td>Layer 0</td>" in text and not re.search(r"\b(nan|inf)\b", text)
