"""A file to its documents, in bounded memory; what cannot be read is reported with file and line.

A plain file is one document, a line of a .jsonl file is one. Text is taken as it is (CRLF too); only a
byte order mark at the start of a file is dropped. Blank lines of a .jsonl file are no records.
"""

import codecs
import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from moejax.config import DataConfig
from moejax.training.data.error_log import ErrorCollector
from moejax.training.data.sources import SourceFile


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, and where it begins."""

    text: bytes  # valid UTF-8, not empty, no NUL
    where: str  # "file:line"


class BadRecord(Exception):
    """Why a record cannot be used, and how many lines into it the fault lies."""

    def __init__(self, reason: str, detail: str = "", line: int = 0):
        super().__init__(reason, detail, line)
        self.reason, self.detail, self.line = reason, detail, line


def read_documents(file: SourceFile, cfg: DataConfig, errors: ErrorCollector) -> Iterator[Document]:
    """The good documents of `file`; each bad record goes to `errors`."""
    limit = int(cfg.max_record_mb * 1e6)
    for line, record in _json_lines(file, limit) if file.is_jsonl else _whole_file(file, limit):
        try:
            if isinstance(record, BadRecord):
                raise record
            text = _json_text(record, cfg.field) if file.is_jsonl else _plain_text(record)
        except BadRecord as bad:
            errors.add(f"{file.name}:{line + bad.line}", bad.reason, bad.detail)
        else:
            yield Document(text, f"{file.name}:{line}")


def _whole_file(file: SourceFile, limit: int) -> Iterator[tuple[int, bytes | BadRecord]]:
    try:
        with file.open() as stream:
            record = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        yield 1, _unreadable(error)
        return
    yield 1, _too_long(limit) if len(record) > limit else record.removeprefix(codecs.BOM_UTF8)


def _json_lines(file: SourceFile, limit: int) -> Iterator[tuple[int, bytes | BadRecord]]:
    line = 0
    try:
        with file.open() as stream:
            while record := stream.readline(limit + 2):  # 2 for the line's end
                line += 1
                if _skip_rest(stream, record, limit):
                    yield line, _too_long(limit)
                elif record.strip():
                    yield line, record
    except (OSError, EOFError, zlib.error) as error:
        yield line + 1, _unreadable(error)
        return
    if line == 0:
        yield 1, BadRecord("empty file")


def _skip_rest(stream: BinaryIO, start: bytes, limit: int) -> bool:
    """Whether the line that begins with `start` is over the limit; if so, its rest is read and forgotten."""
    if len(start.rstrip(b"\r\n")) <= limit:
        return False
    while start and not start.endswith(b"\n"):
        start = stream.readline(1 << 16)
    return True


def _too_long(limit: int) -> BadRecord:
    return BadRecord("too long", f"over data.max_record_mb={limit / 1e6:g}; raise it to take longer records")


def _unreadable(error: Exception) -> BadRecord:
    if isinstance(error, EOFError):
        return BadRecord("truncated gzip", "the file ends early")
    damaged = isinstance(error, (zlib.error, gzip.BadGzipFile))
    return BadRecord("damaged gzip" if damaged else "unreadable file", str(error))


def _plain_text(record: bytes) -> bytes:
    """`record` itself, once it is known to be text."""
    if not record:
        raise BadRecord("empty file")
    nul = record.find(b"\0")
    if nul >= 0:
        raise BadRecord("NUL byte", f"at byte {nul}", record.count(b"\n", 0, nul))
    try:
        record.decode()
    except UnicodeDecodeError as error:
        detail = f"0x{record[error.start]:02x} at byte {error.start}"
        raise BadRecord("invalid UTF-8", detail, record.count(b"\n", 0, error.start)) from None
    return record


def _json_text(record: bytes, field: str) -> bytes:
    """The text in `field` of one JSON object."""
    try:
        value = json.loads(_plain_text(record))
    except json.JSONDecodeError as error:
        raise BadRecord("broken JSON", f"{error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, nesting too deep
        raise BadRecord("broken JSON", str(error)) from None
    if not isinstance(value, dict):
        raise BadRecord("not a JSON object", f"a {type(value).__name__}")
    if field not in value:
        raise BadRecord("missing field", f"{field!r} (data.field) is not among {sorted(value)[:8]}")
    text = value[field]
    if not isinstance(text, str):
        raise BadRecord("field is not a string", f"{field!r} holds a {type(text).__name__}")
    if not text:
        raise BadRecord("empty text", f"{field!r} is empty")
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord("lone surrogate", f"at character {error.start}") from None
    if b"\0" in encoded:
        raise BadRecord("NUL byte", f"in {field!r}")
    return encoded
