"""SentencePiece models, `tokenizer.model` or `spiece.model`: kinds unigram and bpe.

A model is a Protocol Buffers message (SentencePiece's sentencepiece_model.proto) of which a few fields
matter: the pieces, what normalises a text, and which pieces begin and end one.
"""

import struct
from collections.abc import Iterator

from tokenizers import Regex, normalizers

from moejax.interop.tokenizer import pieces
from moejax.interop.tokenizer.pieces import Kind, Pieces
from moejax.tokenizer import Tokenizer, guarded, prepared

UNIGRAM, BPE = 1, 2
# Numbers of fields: of the model, of a piece, of the training, of the normaliser.
PIECES, TRAINING, NORMALIZER = 1, 2, 3
TEXT, SCORE, KIND = 1, 2, 3
MODEL_KIND, SPACE_AFTER, UNKNOWN_ID, BOS_ID, EOS_ID = 3, 24, 40, 41, 42
CHARACTERS, ADD_PREFIX, ONE_SPACE, WRITE_SPACE = 2, 3, 4, 5
# How a field is written.
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5


@guarded()
def read(data: bytes) -> Tokenizer:
    """The tokenizer in a SentencePiece model.

    Raises:
      ValueError: the data are damaged, or a model of another kind.
    """
    fields = list(_fields(data))
    training = _last(fields, TRAINING)
    kind = training.get(MODEL_KIND, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise ValueError(f"it is a model of kind {kind}; {UNIGRAM} (unigram) and {BPE} (bpe) can be read")
    vocabulary = _pieces(fields, training, _last(fields, NORMALIZER))
    backend = (pieces.bpe if kind == BPE else pieces.unigram)(vocabulary)
    bos, eos = (_id(training.get(key, default), vocabulary) for key, default in ((BOS_ID, 1), (EOS_ID, 2)))
    if bos is not None:
        pieces.put_first(backend, bos)
    return Tokenizer(prepared(backend), bos, eos, add_bos=bos is not None)


def _pieces(fields: list[tuple[int, object]], training: dict, normalizer: dict) -> Pieces:
    if training.get(SPACE_AFTER, 0) or not normalizer.get(WRITE_SPACE, 1):
        raise ValueError("it writes spaces after words, or not at all, which is not served")
    entries = [dict(_fields(_bytes(value))) for number, value in fields if number == PIECES]
    texts = [_bytes(entry.get(TEXT, b"")).decode() for entry in entries]
    scores = [struct.unpack("<f", _bytes(entry.get(SCORE, bytes(4))))[0] for entry in entries]
    kinds = [int(entry.get(KIND, Kind.NORMAL)) for entry in entries]
    # Such a piece is looked for in the text as it is, before spaces are written otherwise.
    texts = [
        text.replace(pieces.SPACE, " ") if kind == Kind.USER_DEFINED else text
        for text, kind in zip(texts, kinds, strict=True)
    ]
    unknown = kinds.index(Kind.UNKNOWN) if Kind.UNKNOWN in kinds else None
    characters = _bytes(normalizer.get(CHARACTERS, b""))
    before = [normalizers.Precompiled(characters)] if characters else []
    if normalizer.get(ONE_SPACE, 1):
        before += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return Pieces(texts, scores, kinds, unknown, bool(normalizer.get(ADD_PREFIX, 1)), tuple(before))


def _id(value: int, vocabulary: Pieces) -> int | None:
    """An id as an int32 has it: -1 says that there is no such token."""
    return value if value < len(vocabulary.texts) else None


def _last(fields: list[tuple[int, object]], number: int) -> dict[int, object]:
    """The fields of the message in a field."""
    found = [value for own, value in fields if own == number]
    return dict(_fields(_bytes(found[-1]))) if found else {}


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field holds a number in place of bytes")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, object]]:
    """(number, value) of every field: an int, or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, form = tag >> 3, tag & 7
        if form == VARINT:
            value, at = _varint(message, at)
        else:
            size = {FIXED_64: 8, FIXED_32: 4}.get(form)
            if form == BYTES:
                size, at = _varint(message, at)
            if size is None or at + size > len(message):
                raise ValueError(f"field {number} at byte {at} does not fit into its message")
            value, at = message[at : at + size], at + size
        yield number, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte, at = message[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"there is no number at byte {at}")
