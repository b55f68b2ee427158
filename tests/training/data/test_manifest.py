"""A run goes on with the data it began with, or says what is different."""

import dataclasses
import json

import pytest

from moejax.config import DataConfig
from moejax.errors import DataError
from moejax.training.data.corpus import prepare
from moejax.training.data.manifest import check_unchanged, manifest


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(20):
        (data / f"{i:02}.txt").write_text(f"text number {i}\n" * 3)
    return data


def read(folder, seq_len=16, **settings):
    cfg = DataConfig(
        source=(str(folder),), cache_dir=str(folder.parent / "cache"), tokenizer="bytes", **settings
    )
    return prepare(cfg, 259, seq_len)


def saved(corpus):
    return json.loads(json.dumps(manifest(corpus)))


def test_the_same_data_passes_and_so_does_what_gives_the_same_rows(folder):
    old = saved(read(folder))
    check_unchanged(old, read(folder))
    check_unchanged(old, read(folder, on_error="stop"))
    (folder / "99.txt").write_text("")  # a bad record changes nothing
    check_unchanged(old, read(folder))


def change(folder):
    (folder / "03.txt").write_text("something else\n")


def shuffle(folder):
    a, b = (folder / "03.txt").read_text(), (folder / "04.txt").read_text()
    (folder / "03.txt").write_text(b)
    (folder / "04.txt").write_text(a)


CHANGES = {
    "added: .*/new.txt": lambda folder: (folder / "new.txt").write_text("new\n"),
    "removed: .*/05.txt": lambda folder: (folder / "05.txt").unlink(),
    "changed: .*/03.txt": change,
    "changed: .*/04.txt": shuffle,
}


@pytest.mark.parametrize("expected", CHANGES)
def test_a_change_is_named_with_both_fingerprints(folder, expected):
    old = saved(read(folder))
    CHANGES[expected](folder)
    new = read(folder)
    with pytest.raises(DataError, match=expected) as info:
        check_unchanged(old, new)
    assert info.value.exit_code == 65
    assert old["fingerprint"][:16] in str(info.value) and new.fingerprint[:16] in str(info.value)
    assert "--workdir" in str(info.value)


def test_a_changed_setting_is_named(folder):
    old = saved(read(folder))
    with pytest.raises(DataError, match=r"seq_len: 16 then, 8 now"):
        check_unchanged(old, read(folder, seq_len=8))


def test_many_changes_are_counted_not_listed(folder):
    old = saved(read(folder))
    for i in range(8):
        (folder / f"{i:02}.txt").unlink()
    with pytest.raises(DataError, match="removed: 3 more files"):
        check_unchanged(old, read(folder))


def test_an_older_or_damaged_manifest_is_refused(folder):
    new = read(folder)
    for old in ({}, {"fingerprint": None}):
        with pytest.raises(DataError, match="not what this run began with"):
            check_unchanged(old, new)


def test_the_manifest_names_every_file_with_its_hash(folder):
    corpus = read(folder)
    kept = saved(corpus)
    assert kept["files"] == [dataclasses.asdict(file) for file in corpus.files]
    assert len(kept["files"]) == 20 and all(len(file["sha256"]) == 64 for file in kept["files"])
    assert kept["train_targets"] == corpus.train.num_targets
