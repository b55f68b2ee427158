"""Vocabularies with scores: what is joined first, and what is never found in a text."""

import pytest

from moejax.interop.tokenizer import pieces
from moejax.interop.tokenizer.pieces import Kind, Pieces
from moejax.tokenizer import prepared

TEXTS = ("<unk>", "<s>", "a", "b", "c", "ab", "bc", "abc", "\u2581", "\u2581a")
SCORES = (0, 0, -10, -11, -12, -2, -1, -3, -13, -4)
KINDS = (Kind.UNKNOWN, Kind.CONTROL, *[Kind.NORMAL] * 8)


def ids(backend, text: str) -> list[int]:
    return prepared(backend).encode(text, add_special_tokens=False).ids


def test_the_highest_score_is_joined_first():
    joined = pieces.bpe(Pieces(TEXTS, SCORES, KINDS, 0, add_prefix=False))
    assert ids(joined, "abc") == [7]  # bc, then a with bc
    assert ids(joined, "abb c") == [5, 3, 8, 4]
    reversed_scores = (*SCORES[:5], -1, -2, *SCORES[7:])
    assert ids(pieces.bpe(Pieces(TEXTS, reversed_scores, KINDS, 0, False)), "bab") == [3, 5]


def test_a_space_goes_in_front_if_the_model_wants_it():
    assert ids(pieces.bpe(Pieces(TEXTS, SCORES, KINDS, 0, add_prefix=True)), "a") == [9]
    assert ids(pieces.bpe(Pieces(TEXTS, SCORES, KINDS, 0, add_prefix=False)), "a") == [2]


def test_the_likeliest_pieces_are_found():
    likely = pieces.unigram(Pieces(TEXTS, SCORES, KINDS, 0, add_prefix=False))
    assert ids(likely, "abc") == [7]  # -3 beats ab + c = -14 and a + bc = -11
    assert ids(likely, "aab") == [2, 5]


@pytest.mark.parametrize("make", [pieces.bpe, pieces.unigram])
def test_names_of_control_tokens_are_text(make):
    letters = ("<unk>", "<s>", "<", "s", ">", "\u2581")
    vocabulary = Pieces(letters, [0] * 6, (Kind.UNKNOWN, Kind.CONTROL, *[Kind.NORMAL] * 4), 0, False)
    assert ids(make(vocabulary), "s<s>") == [3, 2, 3, 4]


def test_what_no_piece_covers_is_bytes_or_unknown():
    bytes_256 = [f"<0x{i:02X}>" for i in range(256)]
    texts, kinds = ["<unk>", "a", *bytes_256], [Kind.UNKNOWN, Kind.NORMAL, *[Kind.BYTE] * 256]
    backend = pieces.bpe(Pieces(texts, [0] * 258, kinds, 0, False))
    assert ids(backend, "a\u00e9\n") == [1, 2 + 0xC3, 2 + 0xA9, 2 + 10]
    assert backend.decode([1, 2 + 0xC3, 2 + 0xA9, 2 + 10]) == "a\u00e9\n"
    assert ids(pieces.bpe(Pieces(TEXTS, SCORES, KINDS, 0, False)), "axyb") == [2, 0, 3]


def test_tokens_that_are_always_whole():
    texts, kinds = (*TEXTS, "bb"), (*KINDS, Kind.USER_DEFINED)
    assert ids(pieces.bpe(Pieces(texts, (*SCORES, -99), kinds, 0, False)), "abbc") == [2, 10, 4]


def test_a_damaged_vocabulary_is_refused():
    with pytest.raises(ValueError, match="the token 'a' is there twice"):
        pieces.bpe(Pieces(("a", "a"), (0, 0), (1, 1), None, False))
    with pytest.raises(ValueError, match="the tokens are too long"):
        pieces.bpe(Pieces(("x" * 20_000,), (0,), (1,), None, False))
