"""Requests from the lines of a file, and the lines that answer them.

    {"id": "a", "prompt": "def f(", "max_tokens": 20}                    a JSON line; the id may be left out
    {"messages": [{"role": "user", "content": "Hello"}]}                 the same, of a conversation
    {"custom_id": "a", "method": "POST", "url": "/v1/completions",       a line of an OpenAI batch file
     "body": {"prompt": "def f(", "max_tokens": 20}}                     (or messages: /v1/chat/completions)
    def f(                                                               in a text file, a line is a prompt

Every request gets one line of the same kind, in the same order. A line that cannot be answered says why and
leaves the others alone.
"""

import codecs
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from reprlib import repr as short
from typing import Any, BinaryIO

from moejax.records import suggest
from moejax.serving.chat import make_chat_request
from moejax.serving.generate import Completion
from moejax.serving.request import Request, RequestError, Sampling, make_request, refuse_unless

MAX_LINE = 1 << 24  # bytes
URLS = {"/v1/completions": "prompt", "/v1/chat/completions": "messages"}  # and where the text is
SETTINGS = [field.name for field in dataclasses.fields(Sampling)]
# What OpenAI's callers may send although only one value can be served; null is as good as absent.
FIXED = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "echo": (False,),
    "logprobs": (),
    "stop": ([],),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
}
IGNORED = ("model", "user")  # they change no text


@dataclasses.dataclass(frozen=True)
class Job:
    """One line: the request in it, or what is wrong with it."""

    number: int  # of the line, from 1
    is_openai: bool
    id: Any  # the caller's name for it
    request: Request | None
    error: RequestError | None = None
    is_chat: bool = False


def read_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """(number, line without its end) of every line that is not blank; None in place of an overlong one."""
    number = 0
    while line := stream.readline(MAX_LINE + 5):  # 5 for a byte order mark and the line's end
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        too_long = len(line.rstrip(b"\r\n")) > MAX_LINE
        while too_long and line and not line.endswith(b"\n"):
            line = stream.readline(1 << 16)
        if too_long:
            yield number, None
        elif line.strip():
            yield number, line.rstrip(b"\r\n")


class Reader:
    """Turns lines into jobs and remembers the ids.

    Args:
      model: a `moejax.Model`.
      defaults: sampling where a line says nothing.
      name: of the file, for the messages.
      is_json: of a file whose lines are JSON; None lets the first line decide by its first character.
    """

    def __init__(self, model, defaults: Sampling, name: str, is_json: bool | None):
        self._model, self._defaults, self._name, self._is_json = model, defaults, name, is_json
        self._line_of_id: dict[Any, int] = {}
        self._is_openai = False  # of the latest line that could be read

    def jobs(self, lines: Iterable[tuple[int, bytes | None]]) -> Iterator[Job]:
        """One job per line."""
        for number, line in lines:
            yield self._job(number, line)

    def _job(self, number: int, line: bytes | None) -> Job:
        own_id = None if self._is_openai else number
        try:
            record = self._parse(line)
            self._is_openai = "custom_id" in record or "body" in record
            own_id = self._id_of(record, number)
            self._refuse_second_use(own_id, number)
            body, source = _openai_body(record) if self._is_openai else (record, _source(record))
            request = self._request(body, source)
            return Job(number, self._is_openai, own_id, request, is_chat=source == "messages")
        except RequestError as error:
            located = RequestError(f"{self._name}:{number}: {error}", error.param, error.code)
            return Job(number, self._is_openai, own_id, None, located)

    def _parse(self, line: bytes | None) -> dict:
        short_enough = line is not None
        refuse_unless(
            short_enough, f"the line is longer than {MAX_LINE} bytes; shorten it", code="line_too_long"
        )
        if self._is_json is None:
            self._is_json = line.lstrip().startswith(b"{")
        try:
            record = json.loads(line) if self._is_json else {"prompt": line.decode()}
        except (ValueError, RecursionError) as error:
            kind = "JSON" if self._is_json else "UTF-8 text"
            raise RequestError(f"the line is not {kind}: {error}", code="invalid_json") from None
        refuse_unless(isinstance(record, dict), "the line is no JSON object, {...}", code="invalid_json")
        return record

    def _id_of(self, record: dict, number: int) -> str | int:
        """The caller's id, or the line's number."""
        key = self._id_key
        own_id = record.get(key, None if self._is_openai else number)
        right = isinstance(own_id, str) or (isinstance(own_id, int) and not self._is_openai)
        refuse_unless(right, f"{key} is {short(own_id)}, not text", key, "invalid_type")
        return own_id

    def _refuse_second_use(self, own_id: str | int, number: int) -> None:
        first = self._line_of_id.setdefault(own_id, number)
        key = self._id_key
        refuse_unless(first == number, f"{key} {short(own_id)} is that of line {first}", key, "duplicate_id")

    @property
    def _id_key(self) -> str:
        return "custom_id" if self._is_openai else "id"

    def _request(self, body: dict, source: str) -> Request:
        known = ["id", source, *SETTINGS]
        for name in body:
            words = f"there is no parameter {short(name)}{suggest(name, known)}"
            refuse_unless(name in known, words, name, "unknown_parameter")
        refuse_unless(source in body, f"{source} is missing", source, "missing_parameter")
        own = {name: body[name] for name in SETTINGS if name in body}
        make = make_chat_request if source == "messages" else make_request
        return make(self._model, body[source], dataclasses.replace(self._defaults, **own))


def _source(record: dict) -> str:
    """Where a line of our own kind has its text."""
    return "messages" if "messages" in record else "prompt"


def _openai_body(record: dict) -> tuple[dict, str]:
    """The parameters of an OpenAI batch line that this package has, and which of them is the text."""
    for name, served in (("method", ("POST",)), ("url", tuple(URLS))):
        value = record.get(name)
        words = f"{name} is {short(value)}; only {' or '.join(served)} is served"
        refuse_unless(isinstance(value, str) and value in served, words, name)
    source, body = URLS[record["url"]], record.get("body")
    refuse_unless(isinstance(body, dict), "body is missing or no JSON object", "body", "invalid_type")
    body = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    for name, allowed in FIXED.items():
        if name in body:
            value = body.pop(name)
            words = f"{name}={short(value)} is not served; leave it out"
            refuse_unless(value in allowed, words, name, "unsupported_value")
    if source == "messages" and "max_completion_tokens" in body:  # its name in conversations
        body["max_tokens"] = body.pop("max_completion_tokens")
    return body, source


def answer(job: Job, completion: Completion | None, model_name: str) -> str:
    """The line, without its end, that answers `job`; pure ASCII."""
    row = (_openai_row if job.is_openai else _plain_row)(job, completion, model_name)
    return json.dumps(row, allow_nan=False)


def _plain_row(job: Job, completion: Completion | None, model_name: str) -> dict:
    if completion is None:
        return {"id": job.id, "error": _error(job.error)}
    return {
        "id": job.id,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": len(completion.tokens),
    }


def _openai_row(job: Job, completion: Completion | None, model_name: str) -> dict:
    if completion is None:
        status, body = 400, {"error": _error(job.error)}
    else:
        status, body = 200, _openai_completion(job, completion, model_name)
    response = {"status_code": status, "request_id": f"req_{job.number}", "body": body}
    return {"id": f"batch_req_{job.number}", "custom_id": job.id, "response": response, "error": None}


def _openai_completion(job: Job, completion: Completion, model_name: str) -> dict:
    used, written = completion.prompt_tokens, len(completion.tokens)
    message = {"message": {"role": "assistant", "content": completion.text}}
    text = message if job.is_chat else {"text": completion.text}
    return {
        "id": f"{'chatcmpl' if job.is_chat else 'cmpl'}-{job.number}",
        "object": "chat.completion" if job.is_chat else "text_completion",
        "created": int(time.time()),
        "model": model_name,
        "choices": [text | {"index": 0, "logprobs": None, "finish_reason": completion.finish_reason}],
        "usage": {"prompt_tokens": used, "completion_tokens": written, "total_tokens": used + written},
    }


def _error(error: RequestError) -> dict:
    return {"message": str(error), "type": "invalid_request_error", "param": error.param, "code": error.code}
