"""The compressors' figures are those of the command lines."""

import json
import shutil
import subprocess

import pytest

from moejax.training import compression
from moejax.training.compression import baselines

DATA = b"def f(x):\n    return x + 1\n" * 400


@pytest.mark.parametrize(("name", "command"), [("gzip -9", "gzip -9n -c"), ("xz -9", "xz -9 -T1 -c")])
def test_equal_to_the_command(name, command):
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"{command.split()[0]} is not installed")
    size = len(subprocess.run(command.split(), input=DATA, capture_output=True, check=True).stdout)
    assert baselines(DATA)[name] == pytest.approx(8 * size / len(DATA), abs=8 * 8 / len(DATA))


def test_one_byte_by_hand():
    # gzip: 10 header + 3 deflate (fixed code, one literal, end) + 8 trailer = 21 bytes
    assert baselines(b"a")["gzip -9"] == 8 * 21


def test_no_bytes_are_refused():
    with pytest.raises(ValueError, match="held-out set is empty"):
        baselines(b"")


def test_the_cache_answers_for_the_same_bytes_only(tmp_path, monkeypatch):
    cache = tmp_path / "baselines.json"
    first = baselines(DATA, cache)
    calls = []
    counting = {name: lambda data: calls.append(1) or b"12345678" for name in first}
    monkeypatch.setattr(compression, "COMPRESSORS", counting)
    assert baselines(DATA, cache) == first
    assert not calls
    assert baselines(b"other bytes, eight words of text", cache) == dict.fromkeys(first, 2.0)
    assert len(calls) == 2
    assert json.loads(cache.read_text())["bytes"] == 32


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"sha256": 1}'])
def test_a_damaged_cache_is_replaced(tmp_path, damage):
    cache = tmp_path / "baselines.json"
    cache.write_text(damage)
    assert baselines(DATA, cache) == baselines(DATA) == json.loads(cache.read_text())["bits_per_byte"]
