"""Every way a record can be bad, each with file, line and reason."""

import gzip
import json
import pathlib
import tracemalloc

import pytest

from moejax.config import DataConfig
from moejax.errors import DataError
from moejax.training.data.error_log import KEEP, ErrorCollector
from moejax.training.data.records import read_documents
from moejax.training.data.sources import SourceFile

CFG = DataConfig(max_record_mb=0.001)  # 1000 bytes
GOOD = b'{"text": "good"}\n'


def read(path, content, cfg=CFG):
    path.write_bytes(content)
    errors = ErrorCollector(cfg.on_error)
    texts = [document.text for document in read_documents(SourceFile(path, path.name), cfg, errors)]
    return texts, errors.log()


BAD_LINES = {
    "broken JSON": b'{"text": "x"',
    "not a JSON object": b'["text"]',
    "missing field": b'{"body": "x"}',
    "field is not a string": b'{"text": 3}',
    "empty text": b'{"text": ""}',
    "NUL byte": b'{"text": "a\\u0000b"}',
    "lone surrogate": b'{"text": "\\ud800"}',
    "invalid UTF-8": b'{"text": "\xff"}',
    "too long": b'{"text": "' + b"x" * 1000 + b'"}',
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_a_bad_line_is_named_and_its_neighbours_stay(tmp_path, reason):
    texts, log = read(tmp_path / "a.jsonl", GOOD + BAD_LINES[reason] + b"\n" + GOOD)
    assert texts == [b"good", b"good"]
    assert log.counts == {reason: 1}
    assert log.first[0].startswith(f"a.jsonl:2 {reason}")


def test_deep_nesting_long_numbers_and_a_raw_nul_are_bad_lines_too(tmp_path):
    roomy = DataConfig(max_record_mb=1)
    lines = b"[" * 200_000 + b"\n" + b'{"text": ' + b"1" * 9999 + b"}\n" + GOOD + b'{"text": "\0"}'
    texts, log = read(tmp_path / "a.jsonl", lines, roomy)
    assert texts == [b"good"]
    assert log.counts == {"broken JSON": 2, "NUL byte": 1}


BAD_FILES = {
    "empty file": (b"", 1),
    "NUL byte": (b"one\ntwo\nth\0ree", 3),
    "invalid UTF-8": (b"one\ntwo \xe9t\xe9\n", 2),
    "too long": (b"line\n" * 201, 1),
}


@pytest.mark.parametrize("reason", BAD_FILES)
def test_a_bad_plain_file_is_named_with_the_line_of_the_fault(tmp_path, reason):
    content, line = BAD_FILES[reason]
    texts, log = read(tmp_path / "a.txt", content)
    assert texts == []
    assert log.first[0].startswith(f"a.txt:{line} {reason}")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_truncated_and_damaged_gzip(tmp_path, name):
    whole = gzip.compress(GOOD * 20, mtime=0)
    _, log = read(tmp_path / f"{name}.gz", whole[:-9])
    assert log.counts == {"truncated gzip": 1}
    _, log = read(tmp_path / f"{name}.gz", b"no gzip at all")
    assert log.counts == {"damaged gzip": 1}
    texts, log = read(tmp_path / f"{name}.gz", whole)
    assert log.total == 0 and texts == ([GOOD * 20] if name == "a.txt" else [b"good"] * 20)


def test_lines_before_the_truncation_are_used(tmp_path):
    lines = b"".join(json.dumps({"text": f"line {i}"}).encode() + b"\n" for i in range(2000))
    texts, log = read(tmp_path / "a.jsonl.gz", gzip.compress(lines, mtime=0)[:-100])
    assert texts == [f"line {i}".encode() for i in range(len(texts))]
    assert 0 < len(texts) < 2000
    assert log.first[0].startswith(f"a.jsonl.gz:{len(texts) + 1} truncated gzip")


def test_what_is_no_fault(tmp_path):
    assert read(tmp_path / "bom.txt", b"\xef\xbb\xbfx")[0] == [b"x"]
    assert read(tmp_path / "crlf.txt", b"a\r\nb\r\n")[0] == [b"a\r\nb\r\n"]  # kept: a document is its bytes
    lines = (
        b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}'  # BOM, CRLF, blank lines, no last line break
    )
    texts, log = read(tmp_path / "a.jsonl", lines)
    assert texts == [b"a", b"b"] and log.total == 0


@pytest.mark.parametrize("size, accepted", [(1000, True), (1001, False)])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_limit_is_exact(tmp_path, size, accepted, end):
    line = b'{"text": "' + b"x" * (size - 12) + b'"}'
    texts, log = read(tmp_path / "a.jsonl", line + end)
    assert len(line) == size and bool(texts) == accepted and log.total == (not accepted)
    assert bool(read(tmp_path / "a.txt", b"x" * size)[0]) == accepted
    if end:
        _, log = read(tmp_path / "a.jsonl", line + end + b"{")
        assert log.first[-1].startswith("a.jsonl:2 broken JSON")


def test_a_long_line_is_refused_in_bounded_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * 50_000_000 + b'"}\n' + GOOD)
    file, errors = SourceFile(path, "a.jsonl"), ErrorCollector("skip")
    tracemalloc.start()
    texts = [document.text for document in read_documents(file, DataConfig(max_record_mb=1), errors)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts == [b"good"] and errors.log().first[0].startswith("a.jsonl:1 too long")
    assert peak < 5_000_000


def test_unreadable_file():
    errors = ErrorCollector("skip")
    missing = SourceFile(pathlib.Path("/nonexistent/a.txt"), "a.txt")
    assert list(read_documents(missing, CFG, errors)) == []
    assert errors.log().counts == {"unreadable file": 1}


def test_stop_names_place_reason_and_flag(tmp_path):
    stop = DataConfig(on_error="stop")
    with pytest.raises(
        DataError, match=r"a\.jsonl:2 missing field: 'text' .*\['body'\].*data\.on_error=skip"
    ) as info:
        read(tmp_path / "a.jsonl", GOOD + BAD_LINES["missing field"], stop)
    assert info.value.exit_code == 65


def test_details_are_short_and_count_columns(tmp_path):
    _, log = read(tmp_path / "a.jsonl", b'{"text": x}\n{"' + b"k" * 900 + b'": 1}\n')
    assert log.first[0] == "a.jsonl:1 broken JSON: Expecting value at column 10"
    assert len(log.first[1]) < 250


def test_only_the_first_complaints_are_kept_word_for_word(tmp_path):
    _, log = read(tmp_path / "a.jsonl", b"{\n" * (KEEP + 5))
    assert log.total == KEEP + 5 and len(log.first) == KEEP
    assert log.summary() == f"records left out: {KEEP + 5} ({KEEP + 5} broken JSON)"
