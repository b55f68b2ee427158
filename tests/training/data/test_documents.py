"""The split: by content alone, both sides never empty, every document on one side."""

import pytest

from moejax.config import DataConfig
from moejax.errors import DataError
from moejax.training.data.documents import read_all
from moejax.training.data.sources import find_files


def collect(folder, seed=0, **settings):
    files = find_files((str(folder),))
    return read_all(files, tuple(file.sha256() for file in files), DataConfig(**settings), seed)


def write(folder, texts):
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return folder


def numbered(count):
    return {f"{i:03}.txt": f"document {i}\n".encode() for i in range(count)}


def test_every_document_is_on_one_side_in_file_order(tmp_path):
    got = collect(write(tmp_path / "d", numbered(100)), held_out=0.2)
    assert sorted(got.train + got.held_out) == sorted(numbered(100).values())
    assert 10 <= len(got.held_out) <= 30
    assert got.train == [text for text in numbered(100).values() if text in got.train]
    assert {file.split for file in got.files} == {"train", "held_out"}


def test_place_name_and_neighbours_do_not_matter(tmp_path):
    few = collect(write(tmp_path / "few", numbered(50)), held_out=0.2)
    renamed = {f"z{99 - i}.md": text for i, text in enumerate(numbered(50).values())}
    assert set(collect(write(tmp_path / "renamed", renamed), held_out=0.2).held_out) == set(few.held_out)
    more = collect(write(tmp_path / "more", numbered(100)), held_out=0.2)
    assert set(few.held_out) <= set(more.held_out) and set(few.train) <= set(more.train)


def test_the_seed_chooses_other_documents(tmp_path):
    folder = write(tmp_path / "d", numbered(50))
    assert collect(folder, seed=0, held_out=0.2).held_out != collect(folder, seed=1, held_out=0.2).held_out


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_neither_side_is_ever_empty(tmp_path, share):
    got = collect(write(tmp_path / "d", numbered(3)), held_out=share)
    assert sorted((len(got.train), len(got.held_out))) == [1, 2]


@pytest.mark.parametrize(
    "text, held_out",
    [
        (b"0123456\n8\nabcde\n", b"abcde\n"),  # 60% is byte 9, the line break after it
        (b"012\n" + b"x" * 12 + b"\n", b"x" * 12 + b"\n"),  # the last line holds the place: the break before
        (b"01\n" + b"x" * 13, b"x" * 13),
    ],
)
def test_a_single_document_is_cut_at_a_line_break(tmp_path, text, held_out):
    got = collect(write(tmp_path / "d", {"book.txt": text}), held_out=0.4)
    assert got.held_out == [held_out] and got.train == [text.removesuffix(held_out)]
    assert got.files[0].split == "mixed"


def test_a_single_line_cannot_be_split(tmp_path):
    with pytest.raises(DataError, match=r"book\.txt:1 is the only document and a single line"):
        collect(write(tmp_path / "d", {"book.txt": b"one line\n"}))


def test_duplicates_are_dropped_named_and_never_stop(tmp_path):
    texts = {"a.txt": b"same\n", "b.txt": b"other\n", "c.txt": b"same\n"}
    got = collect(write(tmp_path / "d", texts), on_error="stop")
    assert sorted(got.train + got.held_out) == [b"other\n", b"same\n"]
    assert got.errors.counts == {"duplicate": 1}
    assert "c.txt:1 duplicate of" in got.errors.first[0] and "a.txt:1" in got.errors.first[0]
    assert [file.documents for file in got.files] == [1, 1, 0] and got.files[2].split == "none"


def test_nothing_usable_says_why(tmp_path):
    with pytest.raises(DataError, match=r"2 files but no usable document .*1 NUL byte, 1 empty file"):
        collect(write(tmp_path / "d", {"a.txt": b"", "b.txt": b"\0"}))
