"""Vocabularies of SentencePiece, which has pieces with scores where `tokenizers` has merges.

SentencePiece (Kudo and Richardson 2018, arXiv 1808.06226) writes a space as U+2581 and may put one in front
of every text. Its BPE joins the neighbours whose union is the piece of the highest score, so every way to cut
a piece in two is a merge, ranked by the score of the piece.
"""

import dataclasses
import enum
from collections.abc import Iterator, Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers.normalizers import Normalizer

SPACE = "\u2581"
NEVER = 1000.0  # that much less likely than any piece
MAX_WORK = 1 << 27  # characters of all halves of all pieces; Gemma's 262,144 pieces have 16 million


class Kind(enum.IntEnum):
    """What a piece is for; GGUF has the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # never in a text
    USER_DEFINED = 4  # always whole
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A vocabulary; position = id."""

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    unknown: int | None
    add_prefix: bool  # a space in front of every text
    before: tuple[Normalizer, ...] = ()  # run before spaces are written as SPACE

    @property
    def vocab(self) -> dict[str, int]:
        """Ids by text.

        Raises:
          ValueError: two pieces have one text.
        """
        found = {text: id for id, text in enumerate(self.texts)}
        if len(found) != len(self.texts):
            twice = next(text for id, text in enumerate(self.texts) if found[text] != id)
            raise ValueError(f"the token {twice[:80]!r} is there twice")
        return found

    @property
    def has_bytes(self) -> bool:
        """Whether what no piece covers can be written as bytes."""
        return Kind.BYTE in self.kinds


def bpe(pieces: Pieces) -> tokenizers.Tokenizer:
    """The tokenizer that joins neighbours by score.

    Raises:
      ValueError: the vocabulary is damaged.
    """
    vocab = pieces.vocab
    unknown = None if pieces.unknown is None else pieces.texts[pieces.unknown]
    merges = [(left, right) for _, _, left, right in sorted(_merges(pieces, vocab))]
    model = models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=pieces.has_bytes)
    return _around(model, pieces)


def unigram(pieces: Pieces) -> tokenizers.Tokenizer:
    """The tokenizer that finds the likeliest pieces; scores are log-probabilities.

    Raises:
      ValueError: the vocabulary is damaged.
    """
    kind_of = dict(zip(pieces.vocab, pieces.kinds, strict=True))
    never = min(pieces.scores, default=0.0) - NEVER  # a control token's name in a text is no such token
    usable = (Kind.NORMAL, Kind.USER_DEFINED)
    scored = [
        (text, float(score) if kind_of[text] in usable else never)
        for text, score in zip(pieces.texts, pieces.scores, strict=True)
    ]
    return _around(models.Unigram(scored, pieces.unknown, pieces.has_bytes), pieces)


def add_tokens(backend: tokenizers.Tokenizer, texts: Sequence[str], kinds: Sequence[int]) -> None:
    """Tell `backend` which tokens of its vocabulary are control tokens and which are always whole."""
    named = list(zip(texts, kinds, strict=True))
    control = [text for text, kind in named if kind in (Kind.CONTROL, Kind.UNKNOWN)]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
    whole = [text for text, kind in named if kind == Kind.USER_DEFINED]
    backend.add_tokens([AddedToken(text, normalized=False) for text in whole])


def put_first(backend: tokenizers.Tokenizer, id: int) -> None:
    """Let `backend` begin every text with a token, which only other programs make use of."""
    name = backend.id_to_token(id)
    backend.post_processor = processors.TemplateProcessing(
        single=[name, "$A"], pair=[name, "$A", name, "$B"], special_tokens=[(name, id)]
    )


def _merges(pieces: Pieces, vocab: dict[str, int]) -> Iterator[tuple[float, int, str, str]]:
    """(negative score, id, left half, right half) of every way to join two pieces to a third."""
    if sum(len(text) ** 2 for text in pieces.texts) > MAX_WORK:
        raise ValueError("the tokens are too long")
    whole = [id for id, kind in enumerate(pieces.kinds) if kind == Kind.NORMAL]
    cuts = ((own, cut) for own in whole for cut in range(1, len(pieces.texts[own])))
    for id, cut in cuts:
        left, right = pieces.texts[id][:cut], pieces.texts[id][cut:]
        if left in vocab and right in vocab:
            yield -float(pieces.scores[id]), id, left, right


def _around(model, pieces: Pieces) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    prefix = [normalizers.Prepend(SPACE)] if pieces.add_prefix else []
    steps = [*pieces.before, *prefix, normalizers.Replace(" ", SPACE)]
    backend.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] if pieces.add_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    add_tokens(backend, pieces.texts, pieces.kinds)
    return backend
