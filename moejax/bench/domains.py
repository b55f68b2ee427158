"""Text of several kinds, so that one can see what experts specialise in.

Code is the standard library of this Python. What is beside it the user names, a file per domain; without
any, domains are made of what every machine with a Python has, which is less varied: documentation of the
language, C headers, and descriptions of installed packages.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import sysconfig
from collections.abc import Iterator, Mapping

import numpy as np

from moejax.bench.paper import Inputs
from moejax.config import DataConfig, require
from moejax.errors import DataError
from moejax.tokenizer import Tokenizer
from moejax.training.data import documents, tokenizer
from moejax.training.data.error_log import ErrorCollector
from moejax.training.data.packing import Rows, pack
from moejax.training.data.records import read_documents
from moejax.training.data.sources import SourceFile, find_files

CODE = "code"
LEAST_BYTES = 100_000  # of a domain that the machine is asked for
HELD_OUT = 0.1  # share of a domain's documents
SEPARATOR = "\n"  # between the texts of one JSON record


@dataclasses.dataclass(frozen=True)
class Domains:
    """Packed text with a label for every row; a row holds one domain."""

    names: tuple[str, ...]
    tokenizer: Tokenizer
    train: Rows
    train_label_N: np.ndarray  # of every row, index into names
    held_out: Mapping[str, Rows]  # by domain
    fingerprint: str  # sha256 of all rows
    own_text: bool  # whether the user named text

    @property
    def settings(self) -> dict[str, object]:
        """For a report."""
        tokens = np.bincount(self.train_label_N, minlength=len(self.names)) * self.train.seq_len
        return {"domains": {name: f"{n} tokens" for name, n in zip(self.names, tokens.tolist(), strict=True)}}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about where the text came from."""
        found = "domains are what was found on the machine: " + ", ".join(self.names)
        return () if self.own_text else (f"{found}; name others with --text=FILE,FILE",)


def prepare(inputs: Inputs, vocab: int, seq_len: int, most_bytes: int = 1 << 20) -> Domains:
    """Read, divide, tokenise (one BPE for all) and pack.

    Args:
      inputs: whose `text` names a file per domain (plain text, or .jsonl, whose strings are joined); code
        is always there.
      vocab: ids of the tokenizer.
      seq_len: T, tokens of one row.
      most_bytes: of a domain; whole documents, evenly drawn. All domains get as much as the smallest one.

    Raises:
      DataError: a file cannot be read, or holds too little.
    """
    texts = {CODE: _library()} | (_named(inputs.text) if inputs.text else _found())
    least = min(most_bytes, *(sum(map(len, parts)) for parts in texts.values()))
    sides = {name: _divide(name, _some(parts, least)) for name, parts in texts.items()}
    tok = tokenizer.build("bpe", vocab, [text for train, _ in sides.values() for text in train])

    def packed(parts: list[bytes]) -> Rows:
        return pack(tok.encode_documents(parts), seq_len, tok.bos, tok.eos)

    train = [packed(train) for train, _ in sides.values()]
    held_out = {name: packed(out) for name, (_, out) in sides.items()}
    return Domains(
        names=tuple(texts),
        tokenizer=tok,
        train=_joined(train),
        train_label_N=np.repeat(np.arange(len(train)), [rows.num_rows for rows in train]),
        held_out=held_out,
        fingerprint=_hash([*train, *held_out.values()]),
        own_text=bool(inputs.text),
    )


def _library() -> list[bytes]:
    return documents_of(find_files(()))


def _named(paths: tuple[str, ...]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for path in paths:
        name = pathlib.Path(path).name.partition(".")[0]
        require(name not in (CODE, *found), f"--text={path}: there is a domain {name!r} already; rename it")
        texts = documents_of(find_files((path,), "--text"))
        if sum(map(len, texts)) < LEAST_BYTES // 10:
            raise DataError(
                f"--text={path} holds less than {LEAST_BYTES // 10} bytes of text; give a larger file"
            )
        found[name] = texts
    return found


def documents_of(files: tuple[SourceFile, ...]) -> list[bytes]:
    """All texts of the files, each once."""
    errors, texts = ErrorCollector("skip"), {}
    for file in files:
        if file.is_jsonl:
            texts |= dict.fromkeys(_records(file))
        else:
            texts |= dict.fromkeys(document.text for document in read_documents(file, DataConfig(), errors))
    return list(texts)


def _records(file: SourceFile) -> Iterator[bytes]:
    """Of every line: all strings of the object, whatever its fields are called."""
    with file.open() as stream:
        for number, line in enumerate(stream, start=1):
            try:
                strings = [value for value in json.loads(line).values() if isinstance(value, str)]
            except (ValueError, AttributeError) as error:
                raise DataError(
                    f"{file.name}:{number} is no JSON object ({error}); mend or remove the line"
                ) from error
            yield SEPARATOR.join(strings).encode()


def _found() -> dict[str, list[bytes]]:
    """Domains that this machine has enough of."""
    headers = sorted(map(str, pathlib.Path(sysconfig.get_path("include")).rglob("*.h")))
    found = {
        "reference": _reference(),
        "headers": documents_of(find_files(tuple(headers))) if headers else [],
        "packages": _descriptions(),
    }
    return {name: texts for name, texts in found.items() if sum(map(len, texts)) >= LEAST_BYTES}


def _reference() -> list[bytes]:
    """What `help()` shows about the language."""
    from pydoc_data import topics

    return [text.encode() for text in topics.topics.values()]


def _descriptions() -> list[bytes]:
    """Of installed packages, in the order of their names."""
    found = {}
    for package in importlib.metadata.distributions():
        text = package.metadata.get_payload() or package.metadata.get("Description") or ""
        found[package.metadata["Name"]] = text
    return list({text.encode(errors="replace"): None for _, text in sorted(found.items()) if len(text) > 500})


def _some(texts: list[bytes], most_bytes: int) -> list[bytes]:
    """Whole texts in an order that only they decide, until there are enough; the last is cut."""
    ordered = sorted(texts, key=lambda text: hashlib.sha256(text).digest())
    taken, left = [], most_bytes
    for text in ordered:
        taken.append(text[:left].decode(errors="ignore").encode())
        left -= len(text)
        if left <= 0:
            break
    return taken


def _divide(name: str, texts: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """(train, held out); a domain of one text is cut in two."""
    if len(texts) < 10:  # plays, an encyclopaedia in one file
        whole = b"\n".join(texts)
        train, out = documents.cut(whole, HELD_OUT, name)
        return [train], [out]
    is_out = documents.choose([hashlib.sha256(text).digest() for text in texts], HELD_OUT, seed=0)
    pairs = list(zip(texts, is_out, strict=True))
    return [text for text, out in pairs if not out], [text for text, out in pairs if out]


def _joined(parts: list[Rows]) -> Rows:
    fields = [field.name for field in dataclasses.fields(Rows)]
    return Rows(**{name: np.concatenate([getattr(rows, name) for rows in parts]) for name in fields})


def _hash(parts: list[Rows]) -> str:
    total = hashlib.sha256()
    for rows in parts:
        total.update(rows.target_NT.tobytes() + rows.seg_NT.tobytes())
    return total.hexdigest()
