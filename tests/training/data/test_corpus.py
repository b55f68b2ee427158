"""`prepare` from files to rows: what goes in comes out, dirty or clean, cached or not."""

import dataclasses
import gzip
import json
import logging
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from moejax.config import DataConfig
from moejax.errors import DataError, UsageError
from moejax.training.data.corpus import prepare
from moejax.training.data.packing import Rows

ROOT = pathlib.Path(__file__).resolve().parents[3]
TEXTS = [f"def f{i}(x):\n    return x + {i} * \u00e9\n" * (1 + i % 3) for i in range(60)]


def jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def corpus_of(tmp_path):
    """prepare() over files made from name -> bytes, with its own cache."""

    def run(files, vocab=300, seq_len=16, seed=0, **settings):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        cfg = DataConfig(source=(str(folder),), cache_dir=str(tmp_path / "cache"), held_out=0.2)
        return prepare(dataclasses.replace(cfg, **settings), vocab, seq_len, seed)

    return run


def assert_same_rows(a, b):
    for side in ("train", "held_out"):
        for name in Rows.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(getattr(a, side), name), getattr(getattr(b, side), name))


def test_the_targets_of_the_held_out_rows_are_the_held_out_text(corpus_of):
    corpus = corpus_of({"a.jsonl": jsonl(TEXTS)})
    rows = corpus.held_out
    targets = rows.target_NT[rows.weight_NT]
    assert corpus.tokenizer.decode(targets.tolist()).encode() == corpus.held_out_text()
    documents = int((targets == corpus.tokenizer.eos).sum())
    assert rows.num_targets == targets.size
    assert 0 < documents < len(TEXTS)
    assert corpus.held_out_bytes == len(corpus.held_out_text()) > 0


def test_bits_per_byte_by_hand(corpus_of):
    corpus = corpus_of({"a.jsonl": jsonl(TEXTS)}, tokenizer="bytes")
    targets = corpus.held_out.num_targets
    uniform = targets * math.log(256)  # 8 bits for each target: the bytes, and one end per document
    exact = 8 * targets / corpus.held_out_bytes
    assert corpus.bits_per_byte(uniform, targets) == pytest.approx(exact, rel=1e-12)
    assert corpus.bits_per_byte(10 * math.log(256), 10) == pytest.approx(exact, rel=1e-12)
    assert 8 < exact < 9


DIRT = [
    b'{"text": "x"\n',
    b'{"text": "a\\u0000b"}\n',
    b'{"text": "\xff"}\n',
    b'{"body": "x"}\n',
    b'{"text": 3}\n',
    b'{"text": ""}\n',
    b'{"text": "\\udead"}\n',
    b'{"text": "' + b"x" * 30_000 + b'"}\n',
    b"[]\n",
    jsonl(TEXTS[:1]),  # a duplicate
    b"\r\n",  # a blank line, no record at all
]


def test_a_dirty_source_gives_the_rows_of_the_clean_one(corpus_of):
    clean = corpus_of({"a.jsonl": jsonl(TEXTS[:50]), "b.jsonl": jsonl(TEXTS[50:])})
    lines = jsonl(TEXTS[:50]).splitlines(keepends=True)
    for i, bad in enumerate(DIRT):
        lines.insert(4 * i + 2, bad)
    dirty = {
        "a.jsonl": b"\xef\xbb\xbf" + b"".join(lines).replace(b"}\n", b"}\r\n"),  # BOM and CRLF are no faults
        "a1.txt": b"",
        "a2.txt.gz": gzip.compress(b"lost" * 1000)[:-9],
        "b.jsonl": jsonl(TEXTS[50:]).rstrip(b"\n"),
    }
    got = corpus_of(dirty, max_record_mb=0.02)
    assert_same_rows(got, clean)
    assert got.fingerprint == clean.fingerprint
    assert got.held_out_text() == clean.held_out_text()
    assert clean.errors.total == 0
    reasons = (
        "broken JSON, NUL byte, invalid UTF-8, missing field, field is not a string, empty text, "
        "lone surrogate, too long, not a JSON object, duplicate, empty file, truncated gzip"
    )
    assert got.errors.counts == dict.fromkeys(reasons.split(", "), 1)
    assert "a.jsonl:3 broken JSON" in "\n".join(got.errors.first)


def test_stop_raises_before_anything_is_cached(corpus_of, tmp_path):
    files = {"a.jsonl": jsonl(TEXTS) + b"{\n"}
    with pytest.raises(DataError, match=r"a\.jsonl:61 broken JSON"):
        corpus_of(files, on_error="stop")
    assert not (tmp_path / "cache").exists()
    assert corpus_of(files).errors.total == 1
    with pytest.raises(DataError):  # also after a run that skipped has filled the cache
        corpus_of(files, on_error="stop")


def test_the_second_start_reads_the_cache_and_nothing_differs(corpus_of, monkeypatch):
    files = {"a.jsonl": jsonl(TEXTS) + b"{\n"}
    first = corpus_of(files)
    monkeypatch.setattr("moejax.training.data.corpus.read_all", lambda *_: pytest.fail("read again"))
    second = corpus_of(files)
    assert_same_rows(first, second)
    assert isinstance(second.train.token_NT, np.memmap)
    for name in ("fingerprint", "files", "errors", "settings", "held_out_bytes"):
        assert getattr(first, name) == getattr(second, name)
    assert first.tokenizer.to_json() == second.tokenizer.to_json()
    assert first.held_out_text() == second.held_out_text()


def test_a_damaged_cache_is_made_anew(corpus_of, tmp_path, caplog):
    files = {"a.jsonl": jsonl(TEXTS)}
    first = corpus_of(files)
    (damaged,) = (tmp_path / "cache").glob("corpora/*/train_token_NT.npy")
    data = bytearray(damaged.read_bytes())
    data[-2] ^= 4
    damaged.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        second = corpus_of(files)
    assert "train_token_NT.npy is not what was written" in caplog.text
    assert_same_rows(first, second)
    assert damaged.read_bytes() != data


@pytest.mark.parametrize(
    "change",
    [
        *({"seq_len": 15}, {"vocab": 301}, {"seed": 1}, {"tokenizer": "bytes"}, {"held_out": 0.5}),
        *({"field": "body"}, {"max_record_mb": 2e-4}),
    ],
    ids=str,
)
def test_what_decides_the_rows_decides_the_fingerprint(corpus_of, change):
    records = [{"text": text, "body": text[::-1]} for text in TEXTS]
    files = {"a.jsonl": "".join(json.dumps(record) + "\n" for record in records).encode()}
    assert corpus_of(files).fingerprint != corpus_of(files, **change).fingerprint


def test_the_text_decides_the_fingerprint_and_the_name_does_not(corpus_of):
    first = corpus_of({"a.jsonl": jsonl(TEXTS)})
    renamed = corpus_of({"b.jsonl": jsonl(TEXTS)})
    assert renamed.fingerprint == first.fingerprint
    assert renamed.files[0].path.endswith("b.jsonl")
    assert corpus_of({"a.jsonl": jsonl([*TEXTS[:-1], TEXTS[-1] + "x"])}).fingerprint != first.fingerprint
    assert corpus_of({"a.jsonl": jsonl(TEXTS[::-1])}).fingerprint != first.fingerprint


def test_a_tokenizer_file_is_used_and_its_content_watched(corpus_of, tmp_path):
    files = {"a.jsonl": jsonl(TEXTS)}
    path = tmp_path / "tokenizer.json"
    corpus_of(files, vocab=280).tokenizer.save(path)
    first = corpus_of(files, vocab=4096, tokenizer=str(path))
    assert first.tokenizer.to_json() == path.read_text()
    corpus_of(files, vocab=290).tokenizer.save(path)
    assert corpus_of(files, vocab=4096, tokenizer=str(path)).tokenizer.to_json() == path.read_text()


def test_a_vocabulary_that_cannot_work_is_refused_before_reading(corpus_of):
    with pytest.raises(UsageError, match=r"model\.vocab=100"):
        corpus_of({}, vocab=100)


def test_a_plain_corpus_of_one_file(corpus_of):
    corpus = corpus_of({"book.txt": "".join(TEXTS).encode()})
    assert "".join(TEXTS).encode().endswith(corpus.held_out_text())


def test_the_package_is_light():
    program = (
        "import sys; from moejax.training.data import batches, corpus, manifest\n"
        "print([name for name in ('jax', 'grain', 'flax') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
