"""The tokenizer of a training run: byte-level BPE, plain bytes, or any lossless tokenizer.json."""

import hashlib
import os
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from moejax import tokenizer as any_tokenizer
from moejax.config import require
from moejax.errors import DataError
from moejax.tokenizer import BOS_NAMES, EOS_NAMES, PROBE, Tokenizer

SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>")  # ids 0, 1, 2 of the tokenizers made here
MIN_VOCAB = len(SPECIAL) + 256


def load(path: str | os.PathLike) -> Tokenizer:
    """Read a `tokenizer.json` for training.

    Raises:
      UsageError: there is no such file.
      DataError: it is damaged, has no begin or end token, or does not give texts back unchanged.
    """
    return _lossless(any_tokenizer.load(path), os.fspath(path))


def from_json(text: str, name: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer in the text of a `tokenizer.json`; `name` is for the messages."""
    return _lossless(any_tokenizer.from_json(text, name), name)


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
    require(
        os.path.isfile(choice),
        f"there is no tokenizer at {choice!r}; give bpe, bytes or the path of a tokenizer.json",
    )
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
    cut = (piece.decode() for text in texts for piece in any_tokenizer.pieces(text))
    backend.train_from_iterator(cut, trainer)
    return any_tokenizer.named(backend)


def byte_tokenizer() -> Tokenizer:
    """One id per byte."""
    return train_bpe([], MIN_VOCAB)


def _byte_level() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _lossless(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """`tokenizer`, if documents can be framed by its tokens and are given back unchanged."""
    if tokenizer.bos is None or tokenizer.eos is None:
        raise DataError(
            f"{name} has no token to begin and end a document; add one of {', '.join(BOS_NAMES)} "
            f"and one of {', '.join(EOS_NAMES)}"
        )
    back = tokenizer.decode(tokenizer.encode(PROBE))
    if back != PROBE:
        raise DataError(
            f"{name} turns {PROBE!r} into {back!r}: bits per byte needs a tokenizer that gives every text "
            "back unchanged; choose a byte-level one, or data.tokenizer=bpe"
        )
    return tokenizer
