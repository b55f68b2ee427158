"""The cache: what is damaged is never believed, what cannot be written is not missed."""

import numpy as np
import pytest

from moejax.training.data import cache


def entry():
    return cache.Entry({"name": "x"}, {"a": np.arange(1000, dtype=np.int32), "b": np.array([], np.uint8)})


def test_round_trip_is_memory_mapped_and_private(tmp_path):
    place = tmp_path / "root" / "corpora" / "key"
    cache.store(place, entry())
    loaded = cache.load(place)
    assert loaded.meta == {"name": "x"}
    np.testing.assert_array_equal(loaded.arrays["a"], np.arange(1000))
    assert isinstance(loaded.arrays["a"], np.memmap)
    assert (tmp_path / "root").stat().st_mode & 0o777 == 0o700
    assert [path.name for path in place.parent.iterdir()] == ["key"]  # nothing temporary is left


def test_absent(tmp_path):
    assert cache.load(tmp_path / "none") is None


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "list": lambda path: path.write_bytes(b"[]"),
}


@pytest.mark.parametrize("name", ["a.npy", "b.npy", "meta.json", "index.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_removed(tmp_path, caplog, name, damage):
    place = tmp_path / "corpora" / "key"
    cache.store(place, entry())
    DAMAGE[damage](place / name)
    assert cache.load(place) is None
    assert not place.exists()
    assert "is damaged" in caplog.text


def test_the_first_writer_wins(tmp_path):
    place = tmp_path / "corpora" / "key"
    cache.store(place, entry())
    cache.store(place, cache.Entry({"name": "late"}, {}))
    assert cache.load(place).meta == {"name": "x"}
    assert [path.name for path in place.parent.iterdir()] == ["key"]


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache.store(tmp_path / "file" / "corpora" / "key", entry())
    assert "could not be cached" in caplog.text


def test_directory(monkeypatch, tmp_path):
    assert cache.directory(str(tmp_path)) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory("") == tmp_path / "xdg" / "moejax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.directory("") == tmp_path / ".cache" / "moejax"
