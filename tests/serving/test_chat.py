"""Conversations become prompts; what is wrong with one is said in words."""

import dataclasses

import pytest

import moejax
from moejax.errors import UsageError
from moejax.serving.chat import chat, make_chat_request, prompt_of
from moejax.serving.generate import generate
from moejax.serving.request import RequestError, Sampling

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}{{ mark or 'a' }}:{% endif %}"
)
HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def talker(model):
    return dataclasses.replace(model, tokenizer=dataclasses.replace(model.tokenizer, chat_template=TEMPLATE))


def test_a_conversation_is_continued_where_the_answer_begins(talker):
    encode = talker.tokenizer.encode
    prompt = [*encode("u:hi"), talker.tokenizer.eos, *encode("a:")]
    assert prompt_of(talker, HELLO) == prompt
    assert prompt_of(talker, HELLO, {"mark": "b"}) == [*prompt[:-2], *encode("b:")]
    assert make_chat_request(talker, HELLO, Sampling(max_tokens=3)).tokens == tuple(prompt)
    answer = chat(talker, HELLO, max_tokens=4, temperature=1.0, seed=3)
    assert answer == generate(talker, [prompt], max_tokens=4, temperature=1.0, seed=3)[0]
    assert moejax.chat is chat


@pytest.mark.parametrize(
    ("messages", "code", "words"),
    [
        ([], "invalid_value", "messages is empty"),
        ("hi", "invalid_type", "messages is str, not a list"),
        (["hi"], "invalid_type", r"messages\[0\]='hi' is not"),
        ([*HELLO, {"content": "hi"}], "invalid_type", r"messages\[1\]=.* is not"),
        ([{"role": "robot"}], "invalid_value", "refuses the messages: no robots"),
        ([{"role": "user", "content": "x" * 10_000}], "context_length_exceeded", "more characters"),
        (
            [{"role": "user", "content": [{"text": "x" * 9_000}] * 2}],
            "context_length_exceeded",
            "more characters",
        ),
        ([{"role": "user", "content": object()}], "invalid_value", "not made of JSON values"),
        ([{"role": "user", "content": "x" * 40}], "context_length_exceeded", "context is 32"),
        ([{"role": "user", "content": "\ud800"}], "invalid_value", "half a surrogate pair"),
    ],
)
def test_a_conversation_that_cannot_be_continued_is_refused(talker, messages, code, words):
    with pytest.raises(RequestError, match=words) as caught:
        make_chat_request(talker, messages, Sampling())
    assert caught.value.code == code


def test_who_cannot_chat_says_so(model, talker):
    for mute in (model, dataclasses.replace(model, tokenizer=None)):
        with pytest.raises(RequestError, match="has no chat template; give it a prompt"):
            chat(mute, HELLO)
    with pytest.raises(UsageError, match="seed is a list, but there is one conversation"):
        chat(talker, HELLO, seed=[1, 2])
