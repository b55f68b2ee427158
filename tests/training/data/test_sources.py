"""Which files are found, in which order."""

import gzip
import os
import pathlib

import pytest

from moejax.config import DataConfig
from moejax.errors import DataError, UsageError
from moejax.training.data.sources import SourceFile, find_files


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def found(root, *source):
    return [os.path.relpath(file.path, root) for file in find_files(tuple(str(root / s) for s in source))]


def test_directories_are_recursive_sorted_and_without_hidden_entries(tmp_path):
    write(tmp_path, "d/b.txt", "d/a.txt", "d/sub/c.txt", "d/.git/x", "d/.hidden")
    assert found(tmp_path, "d") == ["d/a.txt", "d/b.txt", "d/sub/c.txt"]


def test_globs_files_and_the_order_of_entries(tmp_path):
    write(tmp_path, "b.txt", "a.txt", "c.md", "d/e.txt")
    assert found(tmp_path, "c.md", "*.txt") == ["c.md", "a.txt", "b.txt"]
    assert found(tmp_path, "**/*.txt") == ["a.txt", "b.txt", "d/e.txt"]
    assert found(tmp_path, "b.txt", "*.txt") == ["b.txt", "a.txt"]  # no file twice
    assert found(tmp_path, "b.txt", "d/../b.txt") == ["b.txt"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path):
    write(tmp_path, "a[1].txt", "a1.txt")
    assert found(tmp_path, "a[1].txt") == ["a[1].txt"]


@pytest.mark.parametrize("entry", ["nothing.txt", "*.none", ""])
def test_an_entry_without_match_is_refused(tmp_path, entry, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"data\.source\[1\]=.*{tmp_path.name}"):
        write(tmp_path, "a.txt")
        find_files(("a.txt", entry))


def test_a_bare_string_is_no_tuple_of_paths():
    with pytest.raises(UsageError, match=r"data\.source='a\.txt' must be a tuple"):
        DataConfig(source="a.txt")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="matches no file"):
        find_files((str(tmp_path / "pipe"),))


def test_kind_and_opening(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n"))
    file = SourceFile(path, "a.jsonl.gz")
    assert file.is_jsonl and not SourceFile(path, "a.json").is_jsonl
    with file.open() as stream:
        assert stream.read() == b"{}\n"


def test_the_default_is_the_standard_library_without_its_tests():
    files = find_files(())
    names = {file.name for file in files}
    assert {"stdlib/argparse.py", "stdlib/json/decoder.py"} <= names
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"test", "tests", "idle_test", "lib2to3", "site-packages", "__pycache__"}
    assert all(name.endswith(".py") for name in names)
    assert list(names) != [] and [file.name for file in files] == sorted(names)
    assert sum(file.path.stat().st_size for file in files) > 5_000_000


def test_an_unreadable_file_has_a_hash_that_says_so():
    assert SourceFile(pathlib.Path("/nonexistent"), "x").sha256() == "unreadable"
