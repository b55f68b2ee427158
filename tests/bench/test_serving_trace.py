"""Traces: two lines of each kind by hand."""

import json

import pytest

from moejax.bench import serving_trace
from moejax.errors import UsageError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:04.9799600,40,10
2023-11-16 18:17:03.9799600,30,8
"""
MOONCAKE = [
    {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]},
    {"timestamp": 3000, "input_length": 1030, "output_length": 7, "hash_ids": [0, 63002, 2]},
]


@pytest.fixture
def azure(tmp_path):
    (tmp_path / "a.csv").write_text(AZURE)
    return str(tmp_path / "a.csv")


@pytest.fixture
def mooncake(tmp_path):
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, MOONCAKE)))
    return str(tmp_path / "m.jsonl")


def test_azure(azure):
    """In order of arrival, at twice the speed; texts have nothing in common."""
    first, second = serving_trace.read(azure, 10, speed=2.0)
    assert (first.arrival, first.prompt, first.output) == (0.0, 30, 8)
    assert (second.arrival, second.prompt, second.output) == (pytest.approx(0.5), 40, 10)
    a, b = serving_trace.jobs([first, second])
    assert (a.id, len(a.prompt), a.max_new) == (0, 30, 8) and len(b.prompt) == 40
    assert a.prompt[0] != b.prompt[0]
    assert len(serving_trace.read(azure, 1)) == 1


def test_mooncake(mooncake):
    requests = serving_trace.read(mooncake, 10)
    assert [request.arrival for request in requests] == [0.0, 3.0]
    a, b = serving_trace.jobs(requests)
    assert (len(a.prompt), len(b.prompt)) == (600, 1030)
    assert a.prompt[:512] == b.prompt[:512] and a.prompt[512:515] != b.prompt[512:515]
    assert b.prompt[512:515] == (1, 0, 1), "the name's digits to the base 251"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "a,b\n1,2\n", r"x.csv is no trace \(KeyError\('TIMESTAMP'\)\); wanted is a .csv with TIME"),
        ("x.jsonl", "[1]\n", "is no trace"),
        ("x.jsonl", json.dumps(MOONCAKE[0] | {"input_length": 9}), "9 tokens are not 2 blocks of 512"),
        ("x.csv", AZURE.splitlines()[0], "has no requests"),
    ],
)  # fmt: skip
def test_what_is_no_trace(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        serving_trace.read(str(tmp_path / name), 10)
    with pytest.raises(UsageError, match="there is no file nowhere"):
        serving_trace.read("nowhere.csv", 10)
