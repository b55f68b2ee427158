"""JSON by strangers: what is read, and what is refused before it costs anything."""

import pytest

from moejax.errors import CheckpointError
from moejax.interop import json_file
from moejax.interop.json_file import MAX_DEPTH, parse, read_json


def refusal(data: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        parse(data)
    return str(caught.value)


def test_reads_an_object(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, 2.5e3, null, "\\"[{\\\\"], "b": {"c": {}}}')
    assert read_json(path) == {"a": [1, 2500.0, None, '"[{\\'], "b": {"c": {}}}


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "Expecting value"),
        (b"[]", "holds a list, not an object"),
        (b'{"a": 1', "Expecting"),
        (b'{"a": 1}x', "Extra data"),
        (b"{'a': 1}", "Expecting property name"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is no number of JSON"),
        (b'{"a": 1e999}', "1e999 is too large a number"),
        (b'{"a": ' + b"1" * 5000 + b"}", "4300 digits"),
        (b'{"a": "\xff"}', "invalid start byte"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": "\n"}', "Invalid control character"),
    ],
)
def test_refuses_what_is_no_json(data, reason):
    assert reason in refusal(data)


@pytest.mark.parametrize("opening, closing", [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
def test_depth(opening, closing):
    levels = MAX_DEPTH // (1 + (len(closing) - 1)) - 1
    inner = opening * levels + b"0" + closing * levels
    assert parse(b'{"a":' + inner + b"}")
    deeper = opening * (levels + 1) + b"0" + closing * (levels + 1)
    assert "nested deeper than 64 levels" in refusal(b'{"a":' + deeper + b"}")
    assert "nested deeper" in refusal(b'{"a":' + opening * 100_000)


def test_brackets_in_strings_are_no_depth():
    text = b'{"a": "' + b"[{" * 1000 + rb"\"[[\\" + b'"}'
    assert parse(text)["a"].endswith('"[[\\')


@pytest.mark.parametrize("value", [b"0,", b"[],", b"{},", b'"a",', b'""""'])
def test_many_values_are_refused_unread(value, monkeypatch):
    monkeypatch.setattr(json_file, "MAX_VALUES", 1000)
    assert parse(b'{"a":[' + b"0," * 990 + b"0]}")
    assert "more than 1,000 values" in refusal(b'{"a":[' + value * 2000)


def test_large_files_are_refused_unread(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": 1}')
    assert read_json(path, 8) == {"a": 1}
    path.write_bytes(b'{"a": x}')
    with pytest.raises(CheckpointError, match="json is no JSON that can be trusted: Expecting value"):
        read_json(path)
    with pytest.raises(CheckpointError, match="has 8 bytes; a file of its kind has at most 7"):
        read_json(path, 7)


def test_what_is_no_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.json cannot be read: No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_json(tmp_path)
