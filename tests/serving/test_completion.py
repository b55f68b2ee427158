"""Where a completion ends, and what is kept of it."""

import dataclasses

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from moejax.serving.completion import Completion, Likelihood, Timing, Writer
from moejax.serving.request import Request, Sampling
from moejax.tokenizer import Tokenizer, prepared
from moejax.training.data.tokenizer import byte_tokenizer

BYTES = byte_tokenizer()
PIECES = ["a", "b", "ab", "ba", "abc", "c", " ", "<|eos|>"]


def word_tokenizer() -> Tokenizer:
    """Whole pieces as tokens; the last is a control token."""
    model = tokenizers.models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="a")
    backend = tokenizers.Tokenizer(model)
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens([PIECES[-1]])
    return Tokenizer(prepared(backend), None, len(PIECES) - 1, add_bos=False)


WORDS = word_tokenizer()


def write(tokenizer, tokens, stop=(), ended=False, chunk=1, **settings):
    """(completion, tokens after which the writer said that a stop text came; None if it never did)."""
    writer = Writer(tokenizer, Request((1, 2), Sampling(stop=stop, **settings)))
    for start in range(0, len(tokens), chunk):
        if writer.add(tokens[start : start + chunk], now=float(start)):
            return writer.completion(ended), start + chunk
    return writer.completion(ended), None


def text_of(text):
    return BYTES.encode(text)


def test_without_stop_texts():
    tokens = text_of("hello")
    assert write(BYTES, tokens)[0] == Completion("hello", tuple(tokens), "length", 2)
    assert write(BYTES, tokens, ended=True)[0].finish_reason == "stop"
    assert write(None, tokens)[0] == Completion("", tuple(tokens), "length", 2)
    assert write(BYTES, [])[0] == Completion("", (), "length", 2)


@pytest.mark.parametrize(
    ("stop", "text", "count"),
    [
        ("\n\n", "one", 5),
        (["\n\n"], "one", 5),
        (["two", "one\n"], "", 4),
        (["e", "one"], "", 3),  # both are there at once: the text ends before the first
        (["wo", "t"], "one\n\n", 6),  # "t" is there first
        ("three", "one\n\ntwo", 8),
    ],
)
def test_stop_worked_example(stop, text, count):
    tokens = text_of("one\n\ntwo")
    reason = "length" if stop == "three" else "stop"
    for chunk in (1, 3, 99):
        found, seen = write(BYTES, tokens, stop, chunk=chunk)
        assert found == Completion(text, tuple(tokens[:count]), reason, 2)
        assert (seen is None) == (reason == "length")
    assert write(BYTES, tokens, stop)[1] in (count, None)


def test_a_stop_text_of_characters_of_several_bytes():
    found, seen = write(BYTES, text_of("a\u6f22\U0001f600b"), "\u6f22\U0001f600")
    assert (found.text, len(found.tokens), seen) == ("a", 8, 8)


@given(
    st.lists(st.integers(0, len(PIECES) - 1), max_size=40),
    st.lists(st.text("abc ", min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(1, 9),
)
def test_a_stop_text_is_found_across_tokens_at_once(tokens, stops, chunk):
    """Against the whole text after each token; control tokens are no text."""
    texts = ["".join(PIECES[i] for i in tokens[:n] if i < len(PIECES) - 1) for n in range(len(tokens) + 1)]
    first = next((n for n, text in enumerate(texts) if any(stop in text for stop in stops)), None)
    found, seen = write(WORDS, tokens, stops, chunk=chunk)
    if first is None:
        assert (found, seen) == (Completion(texts[-1], tuple(tokens), "length", 2), None)
        return
    cut = min(texts[first].index(stop) for stop in stops if stop in texts[first])
    assert found == Completion(texts[first][:cut], tuple(tokens[:first]), "stop", 2)
    assert seen is not None and first <= seen < first + chunk


def test_stop_texts_behind_many_control_tokens_are_found_in_the_end():
    tokens = [0, *[len(PIECES) - 1] * 200, 1, 5]
    found, seen = write(WORDS, tokens, "ab")
    assert (found.text, len(found.tokens), seen) == ("", 202, None)


def test_likelihoods_and_times_go_with_the_tokens():
    request = Request((1,), Sampling(stop="b", logprobs=1))
    writer = Writer(BYTES, request)
    writer.begins(3)
    writer.begins(5)
    tokens, likely = text_of("abc"), [Likelihood(-float(i), ((i, -0.5),)) for i in range(3)]
    assert not writer.add(tokens[:1], 2.0, likely[:1])
    assert writer.add(tokens[1:], 5.0, likely[1:])
    found = writer.completion(ended=False)
    assert found.logprobs == tuple(likely[:2])
    assert found.timing == Timing(2.0, 5.0, 3)
    assert (found.timing.per_token(2), found.timing.per_token(1)) == (3.0, None)
    assert dataclasses.replace(found, timing=None) == found  # text does not depend on time
