"""What is refused, and in which words."""

import dataclasses
import math

import pytest

from moejax.serving.request import RequestError, Sampling, SamplingOptions, make_request, per_prompt


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("max_tokens", 0, "invalid_value"),
        ("max_tokens", -1, "invalid_value"),
        ("max_tokens", 2.0, "invalid_type"),
        ("max_tokens", True, "invalid_type"),
        ("max_tokens", "12", "invalid_type"),
        ("temperature", -0.1, "invalid_value"),
        ("temperature", 2.01, "invalid_value"),
        ("temperature", math.nan, "invalid_value"),
        ("temperature", math.inf, "invalid_value"),
        ("temperature", None, "invalid_type"),
        ("top_k", -1, "invalid_value"),
        ("top_p", -0.1, "invalid_value"),
        ("top_p", 1.1, "invalid_value"),
        ("top_p", math.nan, "invalid_value"),
        ("min_p", 1.1, "invalid_value"),
        ("min_p", -0.1, "invalid_value"),
        ("min_p", "0", "invalid_type"),
        ("seed", 2**63, "invalid_value"),
        ("seed", -(2**63) - 1, "invalid_value"),
        ("seed", 1.0, "invalid_type"),
        ("logprobs", -1, "invalid_value"),
        ("logprobs", 21, "invalid_value"),
        ("logprobs", True, "invalid_type"),
        ("stop", ["a"] * 5, "invalid_value"),
        ("stop", "", "invalid_value"),
        ("stop", ["a", ""], "invalid_value"),
        ("stop", None, "invalid_type"),
        ("stop", ["a", 1], "invalid_type"),
        ("stop", {"a": 1}, "invalid_type"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(name, value, code):
    with pytest.raises(RequestError, match=f"^{name}[ =]") as caught:
        Sampling(**{name: value})
    assert (caught.value.param, caught.value.code, caught.value.exit_code) == (name, code, 2)


def test_the_bounds_themselves_are_allowed():
    Sampling(max_tokens=1, temperature=0, top_k=0, top_p=0, seed=-(2**63), min_p=0, stop=[], logprobs=0)
    most = {"max_tokens": 10**9, "temperature": 2, "top_k": 10**9, "top_p": 1, "seed": 2**63 - 1, "min_p": 1}
    Sampling(**most, stop=["a"] * 4, logprobs=20)


def test_stop_texts_are_one_or_several():
    assert (Sampling(stop="ab").stop, Sampling(stop=["a", "b"]).stop) == (("ab",), ("a", "b"))
    assert per_prompt("stop", ["a", "b"], 3) == [["a", "b"]] * 3
    assert per_prompt("stop", [["a"], []], 2) == [["a"], []]
    assert per_prompt("seed", [1, 2], 2) == [1, 2]


def test_a_seed_of_64_bits_becomes_one_of_32(model):
    seeds = [0, 2**32 - 1, 2**32, -1, 2**63 - 1]
    found = [make_request(model, "a", Sampling(seed=seed)).sampling.seed for seed in seeds]
    assert found[:2] == seeds[:2]
    assert len(set(found)) == 5 and all(0 <= seed < 2**32 for seed in found)


def test_stop_texts_take_a_tokenizer(model):
    wordless = dataclasses.replace(model, tokenizer=None)
    with pytest.raises(RequestError, match="the model has no tokenizer"):
        make_request(wordless, [1], Sampling(stop="a"))


def test_keyword_arguments_are_the_fields():
    assert set(SamplingOptions.__annotations__) == set(Sampling.__annotations__)


def test_a_prompt_begins_with_the_begin_token_and_leaves_room(model):
    request = make_request(model, "ab", Sampling(max_tokens=10**9))
    assert request.tokens == (model.tokenizer.bos, *model.tokenizer.encode("ab"))
    assert request.sampling.max_tokens == model.context - 3


@pytest.mark.parametrize(
    ("prompt", "words", "code"),
    [
        ("", "the prompt is empty", "invalid_value"),
        ([], "the prompt is empty", "invalid_value"),
        ("x" * 32, "has 33 tokens, but the model's context is 32", "context_length_exceeded"),
        ("x" * 10_000_000, "10000000 characters", "context_length_exceeded"),
        ("a\ud800", "half a surrogate pair at character 1", "invalid_value"),
        ([1, 272], r"prompt\[1\]=272 is not a token id from 0 to 271", "invalid_value"),
        ([1, True], r"prompt\[1\]=True is not a token id", "invalid_value"),
        (5, "is int, not text or token ids", "invalid_type"),
        (None, "is NoneType, not text", "invalid_type"),
        (b"abc", "is bytes, not text", "invalid_type"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(model, prompt, words, code):
    with pytest.raises(RequestError, match=words) as caught:
        make_request(model, prompt, Sampling())
    assert (caught.value.param, caught.value.code) == ("prompt", code)
