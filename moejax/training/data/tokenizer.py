"""Text to token ids and back, without loss: byte-level BPE, plain bytes, or any lossless tokenizer.json."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from moejax.config import require
from moejax.errors import DataError, UsageError

SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>")  # ids 0, 1, 2 of the tokenizers made here
BOS_NAMES = ("<|bos|>", "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|endoftext|>")
EOS_NAMES = ("<|eos|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|endoftext|>")
MIN_VOCAB = len(SPECIAL) + 256
PIECE = 1 << 20  # bytes: longer texts are encoded in pieces, which bounds memory and uses all cores
PROBE = 'def f(x):\n\treturn  "\u00e9\u6f22\U0001f600"  # <|eos|> </s>\r\n\n    '


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers` tokenizer and the two ids that frame a document."""

    backend: tokenizers.Tokenizer
    bos: int
    eos: int

    @property
    def vocab(self) -> int:
        """One more than the greatest id; a model may have more."""
        return 1 + max(self.backend.get_vocab().values())

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone; the name of a special token in it is ordinary text."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens left out; exact if it begins and ends between characters."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def encode_documents(self, texts: Iterable[bytes]) -> Iterator[np.ndarray]:
        """int32 ids of each UTF-8 text, many at a time on all cores."""
        for group in _groups(texts):
            pieces = [[piece.decode() for piece in _pieces(text)] for text in group]
            flat = [piece for text in pieces for piece in text]
            encoded = iter(self.backend.encode_batch_fast(flat, add_special_tokens=False))
            for text in pieces:
                yield np.concatenate([np.array(next(encoded).ids, np.int32) for _ in text])

    def to_json(self) -> str:
        """The contents of a `tokenizer.json`."""
        return self.backend.to_str()

    def save(self, path: str | os.PathLike) -> None:
        """Write the standard `tokenizer.json`."""
        pathlib.Path(path).write_text(self.to_json(), encoding="utf-8")


def load(path: str | os.PathLike) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
      UsageError: there is no such file.
      DataError: it is damaged, has no begin or end token, or does not give texts back unchanged.
    """
    if not os.path.isfile(path):
        raise UsageError(
            f"there is no tokenizer at {os.fspath(path)!r}; give bpe, bytes or the path of a tokenizer.json"
        )
    return from_json(pathlib.Path(path).read_text(encoding="utf-8"), os.fspath(path))


def from_json(text: str, name: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer in the text of a `tokenizer.json`; `name` is for the messages."""
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{name} is not a readable tokenizer.json: {error}; replace the file") from error
    backend.no_truncation()
    backend.no_padding()
    tokenizer = _wrap(backend, name)
    back = tokenizer.decode(tokenizer.encode(PROBE))
    if back != PROBE:
        raise DataError(
            f"{name} turns {PROBE!r} into {back!r}: bits per byte needs a tokenizer that gives every text "
            "back unchanged; choose a byte-level one, or data.tokenizer=bpe"
        )
    return tokenizer


def identity(choice: str, vocab: int) -> str:
    """What tells this `data.tokenizer` from others, for a cache key; refuses one that cannot fit `vocab` ids.

    Raises:
      UsageError: `vocab` is too small, or the file is missing.
    """
    if choice in ("bpe", "bytes"):
        require(
            vocab >= MIN_VOCAB,
            f"model.vocab={vocab} is too small for data.tokenizer={choice!r}: 256 bytes and {len(SPECIAL)} "
            f"special tokens need {MIN_VOCAB}; raise model.vocab",
        )
        return f"{choice} {tokenizers.__version__}"
    used = load(choice).vocab
    require(
        used <= vocab,
        f"model.vocab={vocab} is smaller than the {used} ids of data.tokenizer={choice!r}; "
        f"set model.vocab={used}",
    )
    return hashlib.sha256(pathlib.Path(choice).read_bytes()).hexdigest()


def build(choice: str, vocab: int, texts: list[bytes]) -> Tokenizer:
    """The tokenizer of `data.tokenizer`; "bpe" is trained on `texts` and the same for the same texts."""
    if choice == "bpe":
        return train_bpe(texts, vocab)
    return byte_tokenizer() if choice == "bytes" else load(choice)


def train_bpe(texts: list[bytes], vocab: int) -> Tokenizer:
    """Byte-level BPE of at most `vocab` ids; a small corpus may not fill them."""
    backend = _byte_level()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((piece.decode() for text in texts for piece in _pieces(text)), trainer)
    return _wrap(backend, "the trained tokenizer")


def byte_tokenizer() -> Tokenizer:
    """One id per byte."""
    return train_bpe([], MIN_VOCAB)


def _byte_level() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _wrap(backend: tokenizers.Tokenizer, name: str) -> Tokenizer:
    backend.encode_special_tokens = True  # a document about "<|eos|>" must not end there
    ids = [
        next((id for id in map(backend.token_to_id, names) if id is not None), None)
        for names in (BOS_NAMES, EOS_NAMES)
    ]
    if None in ids:
        raise DataError(
            f"{name} has no token to begin and end a document; add one of {', '.join(BOS_NAMES)} "
            f"and one of {', '.join(EOS_NAMES)}"
        )
    return Tokenizer(backend, *ids)


def _groups(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Runs of texts of about 8 pieces."""
    group, size = [], 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= 8 * PIECE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _pieces(text: bytes) -> Iterator[bytes]:
    """`text` in parts of at most PIECE bytes, cut after line breaks or, failing that, between characters."""
    start = 0
    while len(text) - start > PIECE:
        end = text.rfind(b"\n", start, start + PIECE) + 1
        if end <= start:
            end = start + PIECE
            while text[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        yield text[start:end]
        start = end
    yield text[start:]
