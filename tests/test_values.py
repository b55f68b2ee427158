"""Text to value and back."""

from typing import Any, Literal

import hypothesis
import pytest
from hypothesis import strategies as st

from moejax import values


@pytest.mark.parametrize(
    "text, annotation, value",
    [
        ("8", int, 8),
        ("-1", int, -1),
        ("1_000", int, 1000),
        ("3e-4", float, 3e-4),
        ("2", float, 2.0),
        ("True", bool, True),
        ("0", bool, False),
        ("none", int | None, None),
        ("4", int | None, 4),
        ("none", str | None, None),
        ("0.5", int | float, 0.5),
        ("full", Literal["none", "full"], "full"),
        ("a,b", tuple[str, ...], ("a", "b")),
        ("", tuple[str, ...], ()),
        ("2,0.5", tuple[int, float], (2, 0.5)),
        ("8", str, "8"),
    ],
)
def test_parse_by_hand(text, annotation, value):
    parsed = values.parse(text, annotation)
    assert parsed == value and type(parsed) is type(value)
    assert values.fits(parsed, annotation)


@pytest.mark.parametrize(
    "text, annotation",
    [
        ("3.5", int),
        ("", int),
        ("ten", float),
        ("nan", float),
        ("inf", float),
        ("maybe", bool),
        ("2", bool),
        ("x", int | None),
        ("half", Literal["none", "full"]),
        ("1,x", tuple[int, ...]),
        ("1", tuple[int, int]),
        ("{}", dict),
    ],
)
def test_refuses(text, annotation):
    with pytest.raises(ValueError):
        values.parse(text, annotation)


def test_any_takes_the_type_of_the_present_value():
    assert values.parse("4", Any, 2) == 4
    assert values.parse("4", Any, "2") == "4"
    assert values.parse("4,5", Any, (1,)) == (4, 5)
    with pytest.raises(ValueError):
        values.parse("4.5", Any, 2)


@pytest.mark.parametrize(
    "value, annotation, ok",
    [(1, float, True), (True, int, False), (1.0, int, False), ("1", int, False), (None, int | None, True)]
    + [((1, 2), tuple[int, ...], True), ((1, "2"), tuple[int, ...], False), ((1,), tuple[int, int], False)],
)
def test_fits(value, annotation, ok):
    assert values.fits(value, annotation) is ok


finite = st.floats(allow_nan=False, allow_infinity=False)
word = st.text(alphabet="abcxyz./-", min_size=1)


@hypothesis.given(st.one_of(st.integers(), finite, st.booleans(), word, st.lists(st.integers()).map(tuple)))
def test_shown_text_parses_to_the_same_value(value):
    annotation = tuple[int, ...] if isinstance(value, tuple) else type(value)
    parsed = values.parse(values.show(value), annotation)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    "annotation", [int, float, bool, str, int | None, tuple[int, ...], tuple[int, float]]
)
def test_every_example_is_accepted(annotation):
    values.parse(values.example(annotation), annotation)
