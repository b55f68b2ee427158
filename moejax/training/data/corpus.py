"""From `DataConfig` to a packed, tokenised, fingerprinted corpus."""

import dataclasses
import hashlib
import json
import math

import numpy as np

from moejax.config import DataConfig
from moejax.tokenizer import Tokenizer
from moejax.training.data import cache, tokenizer
from moejax.training.data.documents import Documents, FileRecord, read_all
from moejax.training.data.error_log import ErrorLog
from moejax.training.data.packing import Rows, pack
from moejax.training.data.sources import find_files

FORMAT = 1  # raise it when the same settings begin to give other rows
SIDES = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Everything a run knows about its data."""

    train: Rows
    held_out: Rows
    tokenizer: Tokenizer
    held_out_bytes: int  # UTF-8 bytes of the held-out documents
    fingerprint: str  # sha256 of all the model will be shown: tokenizer, rows and held-out text
    files: tuple[FileRecord, ...]
    errors: ErrorLog
    settings: dict  # what else decided the rows
    held_out_array: np.ndarray  # uint8

    def held_out_text(self) -> bytes:
        """The held-out documents, one after the other."""
        return self.held_out_array.tobytes()

    def bits_per_byte(self, nats: float, targets: float) -> float:
        """Bits per held-out byte from the summed loss over `targets` held-out tokens.

        Over all of them it is exact; over some it takes their mean for the mean of all.
        """
        return nats / targets * self.held_out.num_targets / self.held_out_bytes / math.log(2)


def prepare(cfg: DataConfig, vocab: int, seq_len: int, seed: int = 0) -> Corpus:
    """Read, split, tokenise and pack the text of `cfg`, or find it in the cache.

    Args:
      cfg: where the text is and how to treat it.
      vocab: ids the model has; the tokenizer must fit.
      seq_len: T, tokens of one row.
      seed: chooses the held-out documents. Leave it alone when comparing runs.

    Raises:
      DataError: no usable text, or a bad record under `cfg.on_error="stop"`.
      UsageError: the tokenizer and `vocab` do not go together.
    """
    settings = {
        "format": FORMAT,
        "tokenizer": tokenizer.identity(cfg.tokenizer, vocab),
        "vocab": vocab,
        "seq_len": seq_len,
        "seed": seed,
        **{name: getattr(cfg, name) for name in ("field", "held_out", "on_error", "max_record_mb")},
    }
    files = find_files(cfg.source)
    hashes = tuple(file.sha256() for file in files)
    names = [file.name for file in files]
    key = hashlib.sha256(json.dumps([settings, names, hashes]).encode()).hexdigest()
    place = cache.directory(cfg.cache_dir) / "corpora" / key[:32]
    entry = cache.load(place)
    if entry is None:
        documents = read_all(files, hashes, cfg, seed)
        entry = _make_entry(documents, tokenizer.build(cfg.tokenizer, vocab, documents.train), seq_len)
        cache.store(place, entry)
    return _corpus(entry, settings)


def _make_entry(documents: Documents, tok: Tokenizer, seq_len: int) -> cache.Entry:
    arrays = {"held_out_text": np.frombuffer(b"".join(documents.held_out), np.uint8)}
    for side in SIDES:
        rows = pack(tok.encode_documents(getattr(documents, side)), seq_len, tok.bos, tok.eos)
        arrays |= {f"{side}_{field.name}": getattr(rows, field.name) for field in dataclasses.fields(Rows)}
    shown = hashlib.sha256(tok.to_json().encode())
    for name in sorted(arrays):
        shown.update(f"{name} {arrays[name].shape}".encode())
        shown.update(np.ascontiguousarray(arrays[name]))
    meta = {
        "tokenizer": tok.to_json(),
        "fingerprint": shown.hexdigest(),
        "files": [dataclasses.asdict(file) for file in documents.files],
        "errors": dataclasses.asdict(documents.errors),
    }
    return cache.Entry(meta, arrays)


def _corpus(entry: cache.Entry, settings: dict) -> Corpus:
    meta, arrays = entry.meta, entry.arrays
    sides = {
        side: Rows(**{field.name: arrays[f"{side}_{field.name}"] for field in dataclasses.fields(Rows)})
        for side in SIDES
    }
    return Corpus(
        **sides,
        tokenizer=tokenizer.from_json(meta["tokenizer"]),
        held_out_bytes=arrays["held_out_text"].size,
        fingerprint=meta["fingerprint"],
        files=tuple(FileRecord(**file) for file in meta["files"]),
        errors=ErrorLog(meta["errors"]["counts"], tuple(meta["errors"]["first"])),
        settings=settings,
        held_out_array=arrays["held_out_text"],
    )
