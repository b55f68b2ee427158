"""Headers of safetensors files: what is read, and every way in which one can lie."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from moejax.errors import CheckpointError
from moejax.interop.safetensors import header as headers
from moejax.interop.safetensors.header import Entry, read_header
from tests.interop.safetensors.headers import entry, write


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path} is no safetensors file that can be trusted: ")
    return str(caught.value)


def test_by_hand(tmp_path):
    text = b'{"__metadata__":{"a":"{\\"}"}, "w" :{"shape":[2,1],"dtype":"BF16","data_offsets":[0,4]},"n":'
    text += b'{"dtype":"I8","data_offsets":[4,4],"shape":[0]}}   '
    path = write(tmp_path / "a", text, 4)
    start = 8 + len(text)
    assert read_header(path) == {
        "w": Entry(np.dtype("bfloat16"), (2, 1), start, start + 4),
        "n": Entry(np.dtype("int8"), (0,), start + 4, start + 4),
    }


@pytest.mark.parametrize("text", [b"{}", b"{ }  ", b'{"__metadata__":{}}'])
def test_no_tensors(tmp_path, text):
    assert read_header(write(tmp_path / "a", text, 0)) == {}


shapes = st.lists(st.integers(0, 3), max_size=8).map(tuple)
dtypes = st.sampled_from(["float64", "float32", "float16", "int64", "int8", "uint16", "bool"])


@settings(max_examples=30)
@given(st.dictionaries(st.text(min_size=1, max_size=20), st.tuples(shapes, dtypes), max_size=5))
def test_reads_what_the_library_writes(tmp_path_factory, wanted):
    wanted.pop("__metadata__", None)
    path = tmp_path_factory.mktemp("library") / "a"
    path.write_bytes(save({name: np.zeros(shape, dtype) for name, (shape, dtype) in wanted.items()}))
    found = read_header(path)
    assert {name: (e.shape, e.dtype.name) for name, e in found.items()} == wanted


BAD_HEADERS = {
    "dtype 'F33' is none of F64, F32": {"w": entry("F33")},
    "dtype 'F4' is none of": {"w": entry("F4")},
    "F32 [2, 3] takes 24 bytes, data_offsets give it 20": {"w": entry(offsets=(0, 20))},
    "it begins at byte": {"w": entry(offsets=(4, 28))},
    "it has 9 dims, more than 8": {"w": entry(shape=(2, 3, 1, 1, 1, 1, 1, 1, 1))},
    "not a begin and an end": {"w": entry(offsets=(0, 24, 24))},
    "overlaps the one before it": {"v": entry(), "w": entry(offsets=(20, 44))},
    "leaves a hole before it": {"w": entry(offsets=(4, 28))},
    "not whole numbers": {"w": entry(shape=(-2, -3))},
    "are not whole numbers": {"w": entry(shape=(2.0, 3))},
    "whole numbers": {"w": entry(shape=(True, 6))},
    "numbers from 0": {"w": entry(shape=(2**63, 0))},
    "is more than memory can address": {"w": entry("U8", shape=(2**62, 2**2 + 1, 2**63 - 1))},
    "than memory can address": {"w": entry("U8", shape=(0, 2**62, 2**62), offsets=(0, 0))},
    "no list": {"w": {**entry(), "shape": 6}},
    "is no text": {"w": {**entry(), "dtype": 1}},
    "each once": {"w": {**entry(), "more": 1}},
    "says not dtype": {"w": {"dtype": "F32", "shape": [2, 3]}},
    "no flat JSON object": {"w": {**entry(), "more": {}}},
    "flat JSON object": {"w": [1]},
    "has not 1 to 512 bytes": {"": entry()},
    "the name 'n": {"n" * 513: entry()},
    "no name of at most": {"n" * 9000: entry()},
    "holds more than texts": {"__metadata__": {"a": 1}, "w": entry()},
}


@pytest.mark.parametrize("reason", BAD_HEADERS)
def test_lies_in_entries(tmp_path, reason):
    assert reason in refusal(write(tmp_path / "a", BAD_HEADERS[reason], 24))


W = json.dumps(entry()).encode()
BAD_TEXTS = {
    "tensor 'w' is there twice": b'{"w":' + W + b',"w":' + W + b"}",
    "each once": b'{"w":{"dtype":"F32","dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}',
    "is no flat JSON object": b'{"w":' + W,
    "does not go on": b"",
    "byte 9 of it does": b"[]",
    "does not go on as the JSON": b'{"w":' + W + b"}x",
    "begins no name": b'{"w":' + W + b",}",
    "utf-8": b'{"\xff":' + W + b"}",
    "surrogates": b'{"\\ud800":' + W + b"}",
    "Invalid control": b'{"\n":' + W + b"}",
    "recursion": b'{"w":' + W.replace(b"[2, 3]", b"[" * 2000 + b"]" * 2000) + b"}",
    "Expecting": b'{"w":' + W.replace(b"[2, 3]", b"[2 3]") + b"}",
    "the key 'a' is there twice": b'{"__metadata__":{"a":"","a":""},"w":' + W + b"}",
}


@pytest.mark.parametrize("reason", BAD_TEXTS)
def test_texts_that_are_no_header(tmp_path, reason):
    assert reason in refusal(write(tmp_path / "a", BAD_TEXTS[reason], 24))


def test_sizes_that_do_not_fit(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"\0\0\0")
    assert "it has 3 bytes, and the length of its header alone takes 8" in refusal(path)
    assert "its header is to have 18,446,744,073" in refusal(
        write(path, {"w": entry()}, 24, length=2**64 - 1)
    )
    assert "its header is to have 200" in refusal(write(path, {"w": entry()}, 24, length=200))
    assert "it was cut" in refusal(write(path, {"w": entry()}, 23))
    assert "1 bytes follow its last tensor" in refusal(write(path, {"w": entry()}, 25))
    write(path, {"v": entry("U8", (0,), (0, 0)), "w": entry()}, 24)
    monkeypatch.setattr(headers, "MAX_TENSORS", 1)
    assert "more than 1 tensors" in refusal(path)
    monkeypatch.setattr(headers, "MAX_BYTES", 100)
    assert "more than 100" in refusal(path)


def test_every_cut_is_noticed(tmp_path):
    path = tmp_path / "a"
    whole = save({"v": np.arange(5, dtype=np.int16), "w": np.ones((2, 2), np.float32)})
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refusal(path)
