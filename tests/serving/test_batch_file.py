"""Lines to requests: each kind of line, each way to get one wrong."""

import dataclasses
import io
import json

import pytest

from moejax.serving import batch_file
from moejax.serving.batch_file import Job, Reader, read_lines
from moejax.serving.request import Request, Sampling

DEFAULTS = Sampling(max_tokens=7)


def jobs(model, data, is_json=True):
    return list(Reader(model, DEFAULTS, "file", is_json).jobs(read_lines(io.BytesIO(data))))


def openai(custom_id="a", url="/v1/completions", method="POST", **body):
    body = {"prompt": "hi", **body}
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body}).encode()


def test_lines_worked_example(monkeypatch):
    monkeypatch.setattr(batch_file, "MAX_LINE", 5)
    data = b"\xef\xbb\xbfone\r\n\n  \nfive5\nsixsix\nx\nno end"
    assert list(read_lines(io.BytesIO(data))) == [(1, b"one"), (4, b"five5"), (5, None), (6, b"x"), (7, None)]
    assert list(read_lines(io.BytesIO(b""))) == []


def test_a_plain_line(model):
    line = b'{"id": "q", "prompt": "ab", "max_tokens":3, "temperature":0.5, "top_k":4, "top_p":0.9, "seed":6}'
    (job,) = jobs(model, line)
    tokens = (model.tokenizer.bos, *model.tokenizer.encode("ab"))
    assert job == Job(1, False, "q", Request(tokens, Sampling(3, 0.5, 4, 0.9, 6)))


def test_what_a_line_leaves_out_comes_from_the_flags(model):
    (job,) = jobs(model, b'{"prompt": "ab"}')
    assert (job.id, job.request.sampling) == (1, DEFAULTS)


def test_lines_of_text(model):
    found = jobs(model, b'first\n\n{"second"\n', is_json=None)
    assert [(job.id, job.request.tokens[1:]) for job in found] == [
        (1, tuple(model.tokenizer.encode("first"))),
        (3, tuple(model.tokenizer.encode('{"second"'))),
    ]


def test_the_first_character_decides_where_the_name_does_not(model):
    good, bad = jobs(model, b'{"prompt": "a"}\nplain\n', is_json=None)
    assert good.request is not None and bad.error.code == "invalid_json"


def test_an_openai_line(model):
    (job,) = jobs(model, openai(model="m", n=1, stop=None, max_tokens=3, temperature=0.5, user="u"))
    assert (job.is_openai, job.id, job.request.sampling) == (True, "a", Sampling(3, 0.5))
    (job,) = jobs(model, openai(stop=["x", "y"], min_p=0.1, logprobs=5, n=1, echo=False, prompt=["hi"]))
    assert job.request.sampling == Sampling(7, min_p=0.1, stop=("x", "y"), logprobs=5)
    (job,) = jobs(model, openai(max_tokens=None, prompt=[1, 50]))
    assert (job.request.tokens, job.request.sampling) == ((1, 50), DEFAULTS)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b"{", "invalid_json", "not JSON"),
        (b"[1]", "invalid_json", "no JSON object"),
        (b"[" * 100_000, "invalid_json", "not JSON"),
        (b'{"prompt": "\xff"}', "invalid_json", "not JSON"),
        (b'{"prompt": "\\ud800"}', "invalid_value", "half a surrogate pair"),
        (b'{"prompt": ""}', "invalid_value", "the prompt is empty"),
        (b'{"prompt": ["a", "b"]}', "invalid_value", "is not a token id"),
        (b'{"prompt": 5}', "invalid_type", "not text or token ids"),
        (b'{"id": 1}', "missing_parameter", "prompt is missing"),
        (b'{"id": null, "prompt": "a"}', "invalid_type", "id is None, not text"),
        (b'{"prompt": "a", "max_token": 3}', "unknown_parameter", "did you mean max_tokens"),
        (b'{"prompt": "a", "max_tokens": 0}', "invalid_value", "max_tokens=0 must be at least 1"),
        (b'{"prompt": "a", "temperature": NaN}', "invalid_value", "temperature=nan"),
        (b'{"prompt": "a", "temperature": 1e999}', "invalid_value", "temperature=inf"),
        (b'{"prompt": "a", "seed": null}', "invalid_type", "seed=None must be a whole number"),
        (
            openai(url="/v1/embeddings"),
            "invalid_value",
            "only /v1/completions or /v1/chat/completions is served",
        ),
        (openai(method="GET"), "invalid_value", "only POST is served"),
        (openai(n=10**9), "unsupported_value", "n=1000000000 is not served"),
        (openai(stream=True), "unsupported_value", "stream=True is not served"),
        (openai(echo=True), "unsupported_value", "echo=True is not served"),
        (openai(logprobs=6), "invalid_value", "logprobs=6 must be from 0 to 5"),
        (openai(logprobs=-1), "invalid_value", "logprobs=-1 must be from 0 to 20"),
        (openai(logprobs=True), "invalid_type", "logprobs=True must be a whole number"),
        (openai(stop=["a"] * 5), "invalid_value", "stop has 5 texts, at most 4"),
        (openai(min_p=2), "invalid_value", "min_p=2 must be from 0 to 1"),
        (openai(temperature=2.5), "invalid_value", "temperature=2.5 must be from 0 to 2"),
        (openai(prompt=["a", "b"]), "unsupported_value", "a list of 2 prompts; give each a line"),
        (openai(prompt=[1, 10**9]), "invalid_value", "is not a token id from 0 to 271"),
        (openai(prompt=[]), "invalid_value", "the prompt is empty"),
        (openai(tools=[{"type": "function"}]), "unsupported_value", "is not served"),
        (b'{"id": true, "prompt": "a"}', "invalid_type", "id is True, not text"),
        (openai(custom_id=5), "invalid_type", "custom_id is 5, not text"),
        (
            b'{"custom_id": "a", "method": "POST", "url": "/v1/completions"}',
            "invalid_type",
            "body is missing",
        ),
    ],
)
def test_a_bad_line_says_why_and_leaves_the_others_alone(model, line, code, words):
    bad, good = jobs(model, line + b'\n{"id": "good", "prompt": "a"}\n')
    assert (bad.number, bad.request, bad.error.code) == (1, None, code)
    assert str(bad.error).startswith("file:1: ") and words in str(bad.error)
    assert good.request is not None and good.error is None


def test_an_overlong_line(model, monkeypatch):
    monkeypatch.setattr(batch_file, "MAX_LINE", 20)
    bad, good = jobs(model, b'{"prompt": "' + b"x" * 99 + b'"}\n{"prompt": "a"}\n')
    assert bad.error.code == "line_too_long" and good.request is not None


def test_the_second_use_of_an_id_is_refused(model):
    for line, name in ((b'{"id": "a", "prompt": "x"}', "id"), (openai(), "custom_id")):
        first, second = jobs(model, line + b"\n" + line)
        assert first.request is not None
        assert (second.id, second.error.code) == ("a", "duplicate_id")
        assert f"file:2: {name} 'a' is that of line 1" in str(second.error)


def test_of_answered_lines_only_the_ids_are_noted(model):
    lines = [openai("a"), b"{", openai("b"), openai("a"), openai("c", n=2), b"x"]
    reader = Reader(model, DEFAULTS, "file", True)
    left = list(reader.jobs(read_lines(io.BytesIO(b"\n".join(lines))), answered={1, 2, 5}))
    assert [(job.number, job.id, job.error and job.error.code) for job in left] == [
        (3, "b", None),
        (4, "a", "duplicate_id"),
        (6, None, "invalid_json"),
    ]


CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def talker(model):
    template = "{{ messages[0].content }}<|eos|>"
    return dataclasses.replace(model, tokenizer=dataclasses.replace(model.tokenizer, chat_template=template))


def chat_line(url=CHAT, **body) -> bytes:
    return json.dumps({"custom_id": "c", "method": "POST", "url": url, "body": body}).encode()


def test_a_line_may_hold_a_conversation(talker):
    plain, openai_line = jobs(
        talker, json.dumps({"messages": HELLO}).encode() + b"\n" + chat_line(messages=HELLO)
    )
    tokens = (*talker.tokenizer.encode("hi"), talker.tokenizer.eos)
    for job in (plain, openai_line):
        assert (job.request.tokens, job.is_chat, job.error) == (tokens, True, None)
    (job,) = jobs(talker, chat_line(messages=HELLO, max_completion_tokens=3, model="m"))
    assert job.request.sampling == Sampling(3)
    for given, wanted in (({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 7}, 7)):
        (job,) = jobs(talker, chat_line(messages=HELLO, **given))
        assert job.request.sampling.logprobs == wanted
    (job,) = jobs(talker, chat_line(messages=HELLO, logprobs=False))
    assert job.request.sampling.logprobs is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (chat_line(prompt="hi"), "no parameter 'prompt'"),
        (chat_line(), "messages is missing"),
        (chat_line("/v1/completions", messages=HELLO), "no parameter 'messages'"),
        (
            chat_line("/v1/embeddings", messages=HELLO),
            "only /v1/completions or /v1/chat/completions is served",
        ),
        (chat_line(["/v1/completions"], messages=HELLO), "url is"),
        (chat_line(messages=[]), "messages is empty"),
        (chat_line(messages=HELLO, logprobs=3), "logprobs=3 must be true or false"),
        (chat_line(messages=HELLO, top_logprobs=3), "top_logprobs takes logprobs=true"),
        (chat_line(messages=HELLO, logprobs=True, top_logprobs=21), "top_logprobs=21 must be"),
        (chat_line(messages=HELLO, logprobs=True, top_logprobs=True), "top_logprobs=True must be"),
        (chat_line(messages=HELLO, chat_template="{{ 1 }}"), "no parameter 'chat_template'"),
    ],
)
def test_a_conversation_that_cannot_be_read_is_refused_alone(talker, line, words):
    bad, good = jobs(talker, line + b"\n" + chat_line(messages=HELLO).replace(b'"c"', b'"d"'))
    assert words in str(bad.error) and good.error is None
