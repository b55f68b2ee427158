"""Lines to requests and back: each kind of line, each way to get one wrong."""

import dataclasses
import io
import json

import pytest

from moejax.serving import batch_file
from moejax.serving.batch_file import Job, Reader, answer, read_lines
from moejax.serving.generate import Completion
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
        (openai(logprobs=2), "unsupported_value", "logprobs=2 is not served"),
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


COMPLETION = Completion("\u00e9!", (7, 8, 9), "length", 4)


def test_plain_answers(model):
    good, bad = jobs(model, b'{"id": "a", "prompt": "x"}\n{"id": "b"}')
    assert json.loads(answer(good, COMPLETION, "m")) == {
        "id": "a",
        "text": "\u00e9!",
        "finish_reason": "length",
        "prompt_tokens": 4,
        "completion_tokens": 3,
    }
    assert json.loads(answer(bad, None, "m")) == {
        "id": "b",
        "error": {
            "message": "file:2: prompt is missing",
            "type": "invalid_request_error",
            "param": "prompt",
            "code": "missing_parameter",
        },
    }


def test_openai_answers(model):
    good, bad, broken = jobs(model, openai("a") + b"\n" + openai("b", n=2) + b"\n{")
    row = json.loads(answer(good, COMPLETION, "m"))
    assert set(row) == {"id", "custom_id", "response", "error"}
    assert (row["custom_id"], row["error"], row["response"]["status_code"]) == ("a", None, 200)
    body = row["response"]["body"]
    assert (body["object"], body["model"]) == ("text_completion", "m")
    assert body["choices"] == [{"text": "\u00e9!", "index": 0, "logprobs": None, "finish_reason": "length"}]
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    for job, own_id, param in ((bad, "b", "n"), (broken, None, None)):
        row = json.loads(answer(job, None, "m"))
        assert (row["custom_id"], row["error"], row["response"]["status_code"]) == (own_id, None, 400)
        assert row["response"]["body"]["error"]["param"] == param


def test_answers_are_ascii(model):
    (job,) = jobs(model, b'{"id": "\\ud800", "prompt": "x"}')
    assert answer(job, COMPLETION, "m").isascii()


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
    assert job.request.sampling.max_tokens == 3


def test_the_answer_to_a_conversation(talker):
    (job,) = jobs(talker, chat_line(messages=HELLO))
    body = json.loads(answer(job, Completion("text", (5, 6), "stop", 3), "name"))["response"]["body"]
    assert (body["object"], body["id"], body["usage"]["total_tokens"]) == ("chat.completion", "chatcmpl-1", 5)
    assert body["choices"] == [
        {
            "message": {"role": "assistant", "content": "text"},
            "index": 0,
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


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
        (chat_line(messages=HELLO, chat_template="{{ 1 }}"), "no parameter 'chat_template'"),
    ],
)
def test_a_conversation_that_cannot_be_read_is_refused_alone(talker, line, words):
    bad, good = jobs(talker, line + b"\n" + chat_line(messages=HELLO).replace(b'"c"', b'"d"'))
    assert words in str(bad.error) and good.error is None
