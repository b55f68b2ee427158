"""The documents of all files: repeated ones dropped, the rest divided into train and held-out."""

import collections
import dataclasses
import hashlib

from moejax.config import DataConfig
from moejax.errors import DataError
from moejax.training.data.error_log import ErrorCollector, ErrorLog
from moejax.training.data.records import Document, read_documents
from moejax.training.data.sources import SourceFile


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A file of the corpus as it was when the corpus was made."""

    path: str
    sha256: str
    bytes: int
    documents: int  # used, after dropping bad and repeated ones
    split: str  # train | held_out | mixed | none: where they went


@dataclasses.dataclass(frozen=True)
class Documents:
    """All texts, in the order of the files."""

    train: list[bytes]
    held_out: list[bytes]
    files: tuple[FileRecord, ...]
    errors: ErrorLog


def read_all(files: tuple[SourceFile, ...], hashes: tuple[str, ...], cfg: DataConfig, seed: int) -> Documents:
    """Read, deduplicate and split.

    The first of equal documents stays. A document is held out if a hash of its text (and `seed`) says so:
    neither its place, nor its file's name, nor any other document has a say. A corpus of one document is cut
    in two at a line break.

    Raises:
      DataError: a bad record under `on_error="stop"`, or too little text for two sides.
    """
    errors = ErrorCollector(cfg.on_error)
    unique = _read_unique(files, cfg, errors)
    owners = [owner for owner, _ in unique.values()]
    texts = [document.text for _, document in unique.values()]
    log = errors.log()
    if not texts:
        raise DataError(_nothing_left(files, log))
    if len(texts) == 1:
        where = next(document.where for _, document in unique.values())
        texts, owners, is_held_out = cut(texts[0], cfg.held_out, where), owners * 2, [False, True]
    else:
        is_held_out = choose(list(unique), cfg.held_out, seed)
    return Documents(
        [text for text, out in zip(texts, is_held_out, strict=True) if not out],
        [text for text, out in zip(texts, is_held_out, strict=True) if out],
        _file_records(files, hashes, owners, is_held_out),
        log,
    )


def _read_unique(
    files: tuple[SourceFile, ...], cfg: DataConfig, errors: ErrorCollector
) -> dict[bytes, tuple[int, Document]]:
    """Each different document and the index of its file, by the hash of its text, in order."""
    unique: dict[bytes, tuple[int, Document]] = {}
    for owner, file in enumerate(files):
        for document in read_documents(file, cfg, errors):
            digest = hashlib.sha256(document.text).digest()
            if digest in unique:
                errors.add_duplicate(document.where, unique[digest][1].where)
            else:
                unique[digest] = owner, document
    return unique


def choose(digests: list[bytes], share: float, seed: int) -> list[bool]:
    """Which documents are held out: those whose hash, as a fraction, is below `share`; never all or none."""
    salt = f"{seed}:".encode()
    scores = [int.from_bytes(hashlib.sha256(salt + digest).digest()[:8]) / 2**64 for digest in digests]
    least, most = min(scores), max(scores)
    return [score == least or (score < share and score != most) for score in scores]


def cut(text: bytes, share: float, where: str) -> list[bytes]:
    """The two sides of a corpus that is one document."""
    target = int(len(text) * (1 - share))
    end = text.find(b"\n", target) + 1
    if end in (0, len(text)):  # the last line reaches over the target
        end = text.rfind(b"\n", 0, target) + 1
    if end == 0:
        raise DataError(
            f"{where} is the only document and a single line, so nothing can be held out; "
            "give data.source at least two documents, or one of several lines"
        )
    return [text[:end], text[end:]]


def _file_records(
    files: tuple[SourceFile, ...], hashes: tuple[str, ...], owners: list[int], is_held_out: list[bool]
) -> tuple[FileRecord, ...]:
    train = collections.Counter(owner for owner, out in zip(owners, is_held_out, strict=True) if not out)
    held_out = collections.Counter(owner for owner, out in zip(owners, is_held_out, strict=True) if out)
    names = {(True, True): "mixed", (True, False): "train", (False, True): "held_out", (False, False): "none"}
    return tuple(
        FileRecord(
            file.name,
            sha256,
            file.path.stat().st_size if sha256 != "unreadable" else 0,
            train[i] + held_out[i],
            names[train[i] > 0, held_out[i] > 0],
        )
        for i, (file, sha256) in enumerate(zip(files, hashes, strict=True))
    )


def _nothing_left(files: tuple[SourceFile, ...], log: ErrorLog) -> str:
    shown = "".join(f"\n  {complaint}" for complaint in log.first[:5])
    return (
        f"data.source has {len(files)} files but no usable document ({log.summary()}).{shown}\n"
        "Mend the files, or name others with --config.data.source=PATH"
    )
