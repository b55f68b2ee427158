"""Sorts the tokens of a vocabulary into the kinds of words that Python code is made of."""

import keyword
import re
from collections.abc import Iterable

import numpy as np

KINDS = ("identifier", "keyword", "number", "string", "operator", "space", "newline", "comment", "other")


def token_kinds(token_texts: Iterable[str]) -> np.ndarray:
    """The index into `KINDS` of each token.

    A token is judged by its own text alone: a word inside a string or a comment counts as an identifier,
    and `string` and `comment` are the tokens that hold a quote or begin with `#`.

    Args:
      token_texts: decoded text per token id, leading spaces kept; an id without text is "other".
    """
    return np.array([KINDS.index(_kind(text)) for text in token_texts], np.int32)


def _kind(text: str) -> str:
    word = text.strip()
    for name, holds in _RULES:
        if holds(text, word):
            return name
    return "other"


_RULES = (  # the first that holds
    ("other", lambda text, word: not text or "\ufffd" in text),
    ("newline", lambda text, word: not word and "\n" in text),
    ("space", lambda text, word: not word),
    ("comment", lambda text, word: word.startswith("#")),
    ("string", lambda text, word: "'" in word or '"' in word),
    ("keyword", lambda text, word: keyword.iskeyword(word)),
    ("number", lambda text, word: re.match(r"[\d.]*\d", word) is not None),
    ("identifier", lambda text, word: re.search(r"[^\W\d]", word) is not None),
    ("operator", lambda text, word: word.isascii() and word.isprintable()),
)
