"""What answers look like, to their readers of other packages too."""

import json

import pytest

from moejax.serving.answers import Answers
from moejax.serving.batch_file import Job
from moejax.serving.completion import Completion, Likelihood
from moejax.serving.request import Request, RequestError, Sampling
from moejax.training.data.tokenizer import byte_tokenizer

BYTES = byte_tokenizer()
COMPLETION = Completion("\u00e9!", (7, 8, 9), "length", 4)
REQUEST = Request((1,), Sampling())
ERROR = RequestError("file:2: prompt is missing", "prompt", "missing_parameter")


def answer(is_openai, id, completion=None, is_chat=False):
    request = completion and REQUEST
    line = Answers("m", 123, BYTES).line(Job(2, is_openai, id, request, ERROR, is_chat), completion)
    assert line.isascii() and "\n" not in line
    return json.loads(line)


def test_plain_answers():
    assert answer(False, "a", COMPLETION) == {
        "id": "a",
        "text": "\u00e9!",
        "finish_reason": "length",
        "prompt_tokens": 4,
        "completion_tokens": 3,
    }
    assert answer(False, "\ud800") == {
        "id": "\ud800",
        "error": {
            "message": "file:2: prompt is missing",
            "type": "invalid_request_error",
            "param": "prompt",
            "code": "missing_parameter",
        },
    }


def test_openai_answers():
    assert answer(True, "a", COMPLETION) == {
        "id": "batch_req_2",
        "custom_id": "a",
        "error": None,
        "response": {
            "status_code": 200,
            "request_id": "req_2",
            "body": {
                "id": "cmpl-2",
                "object": "text_completion",
                "created": 123,
                "model": "m",
                "choices": [
                    {"text": "\u00e9!", "index": 0, "logprobs": None, "finish_reason": "length"}
                ],
                "usage": {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7},
            },
        },
    }  # fmt: skip
    row = answer(True, None)
    assert (row["custom_id"], row["error"], row["response"]["status_code"]) == (None, None, 400)
    assert row["response"]["body"]["error"]["param"] == "prompt"


def test_the_answer_to_a_conversation():
    body = answer(True, "c", Completion("text", (5, 6), "stop", 3), is_chat=True)["response"]["body"]
    assert (body["object"], body["id"], body["usage"]["total_tokens"]) == ("chat.completion", "chatcmpl-2", 5)
    assert body["choices"] == [
        {
            "message": {"role": "assistant", "content": "text"},
            "index": 0,
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


A, B, HALF = *BYTES.encode("ab"), BYTES.encode("\u00e9")[0]
LIKELY = Completion(
    "ab",
    (A, HALF, B),
    "length",
    1,
    (
        Likelihood(-1.0, ((B, -0.5), (A, -1.0))),
        Likelihood(-2.0, ((A, -0.25),)),
        Likelihood(-3.0, ((BYTES.eos, -0.125),)),
    ),
)


@pytest.mark.parametrize("is_openai", [False, True])
def test_log_probabilities_of_a_completion(is_openai):
    row = answer(is_openai, "a", LIKELY)
    found = row["response"]["body"]["choices"][0]["logprobs"] if is_openai else row["logprobs"]
    assert found == {
        "tokens": ["a", "\ufffd", "b"],
        "token_logprobs": [-1.0, -2.0, -3.0],
        "top_logprobs": [
            {"b": -0.5, "a": -1.0},
            {"a": -0.25, "\ufffd": -2.0},
            {f"token_id:{BYTES.eos}": -0.125, "b": -3.0},
        ],
        "text_offset": [0, 1, 2],
    }


def test_log_probabilities_of_a_conversation():
    row = answer(True, "a", LIKELY, is_chat=True)
    first, second, third = row["response"]["body"]["choices"][0]["logprobs"]["content"]
    assert first == {
        "token": "a",
        "logprob": -1.0,
        "bytes": [97],
        "top_logprobs": [
            {"token": "b", "logprob": -0.5, "bytes": [98]},
            {"token": "a", "logprob": -1.0, "bytes": [97]},
        ],
    }
    assert (second["token"], second["bytes"]) == ("\ufffd", None)
    assert third["top_logprobs"][0]["token"] == f"token_id:{BYTES.eos}"


def test_an_empty_completion_has_empty_columns():
    empty = Completion("", (), "stop", 1, ())
    columns = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    assert answer(False, "a", empty)["logprobs"] == columns
    choice = answer(True, "a", empty, is_chat=True)["response"]["body"]["choices"][0]
    assert choice["logprobs"]["content"] == []
