"""No field of a config.json is overlooked."""

import logging

import pytest

from moejax.errors import UsageError
from moejax.interop.hf.fields import Fields


def test_a_field_is_taken_with_its_kind():
    fields = Fields({"width": 8, "eps": 1, "name": "x", "tied": False, "nothing": None})
    assert fields.take("width", int) == 8
    eps = fields.take("eps", float)
    assert isinstance(eps, float) and eps == 1.0
    assert fields.take("tied", bool) is False
    assert fields.take("nothing", int, 3) == fields.take("absent", int, 3) == 3
    assert "nothing" not in fields and "width" in fields
    assert fields.choose("name", {"x": "found"}) == "found"
    fields.done()


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda f: f.take("absent", int), "has no 'absent', which this family needs; add it"),
        (lambda f: f.take("name", int), "name='x' is no int; correct it"),
        (lambda f: f.take("tied", int), "tied=True is no int"),
        (lambda f: f.take("width", int, least=9), "width=8 must be at least 9"),
        (lambda f: f.take("width", int, most=7), "width=8 must be at most 7"),
        (lambda f: f.choose("name", {"y": 1}), "name='x' is not supported; it may be 'y'"),
        (lambda f: f.fixed("name", "y", "z"), "name='x' is not supported; it must be 'y' or 'z'"),
        (lambda f: f.fixed("name"), "it must be absent"),
        (lambda f: f.done(), "fields that are not known for this family: name='x', tied=True, width=8"),
        (lambda f: f.part("width"), "width=8 is no dict"),
    ],
)
def test_what_does_not_fit_is_named(use, said):
    with pytest.raises(UsageError, match=f"^here(:| ).*{said}"):
        use(Fields({"width": 8, "name": "x", "tied": True}, "here"))


def test_a_field_that_only_others_need_is_said_to_be_unused():
    fields = Fields({"width": 8, "use_cache": True})
    fields.unused("width")
    fields.done()


def test_code_is_named_and_never_used(caplog):
    with caplog.at_level(logging.WARNING):
        Fields({"auto_map": {"AutoModel": "evil.Model"}}).done()
    assert "auto_map names code, which is not used" in caplog.text


def test_parts_have_fields_of_their_own():
    fields = Fields({"rope": {"theta": 1.0, "other": 2}}, "config.json")
    part = fields.part("rope")
    assert part.take("theta", float) == 1.0
    fields.done()
    with pytest.raises(UsageError, match=r"config\.json: rope has fields .*: other=2"):
        part.done()
    assert fields.part("absent") is None
