"""Requests from the lines of a file.

    {"id": "a", "prompt": "def f(", "max_tokens": 20}                    a JSON line; the id may be left out
    {"messages": [{"role": "user", "content": "Hello"}]}                 the same, of a conversation
    {"custom_id": "a", "method": "POST", "url": "/v1/completions",       a line of an OpenAI batch file
     "body": {"prompt": "def f(", "max_tokens": 20}}                     (or messages: /v1/chat/completions)
    def f(                                                               in a text file, a line is a prompt

What is wrong with a line is that line's error alone.
"""

import codecs
import dataclasses
import json
from collections.abc import Container, Iterable, Iterator
from reprlib import repr as short
from typing import Any, BinaryIO

from moejax.records import suggest
from moejax.serving.chat import make_chat_request
from moejax.serving.openai_body import sampling_body
from moejax.serving.request import Request, RequestError, Sampling, make_request, refuse_unless

MAX_LINE = 1 << 24  # bytes
SETTINGS = [field.name for field in dataclasses.fields(Sampling)]


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

    def jobs(self, lines: Iterable[tuple[int, bytes | None]], answered: Container[int] = ()) -> Iterator[Job]:
        """One job per line, but not for lines numbered in `answered`, of which only the ids are noted."""
        for number, line in lines:
            job = self._job(number, line, number not in answered)
            if job is not None:
                yield job

    def _job(self, number: int, line: bytes | None, wanted: bool) -> Job | None:
        own_id = None if self._is_openai else number
        try:
            record = self._parse(line)
            self._is_openai = "custom_id" in record or "body" in record
            own_id = self._id_of(record, number)
            self._refuse_second_use(own_id, number)
            if not wanted:
                return None
            body, source = sampling_body(record) if self._is_openai else (record, _source(record))
            request = self._request(body, source)
            return Job(number, self._is_openai, own_id, request, is_chat=source == "messages")
        except RequestError as error:
            located = RequestError(f"{self._name}:{number}: {error}", error.param, error.code)
            return Job(number, self._is_openai, own_id, None, located) if wanted else None

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
        is_number = isinstance(own_id, int) and not isinstance(own_id, bool)
        right = isinstance(own_id, str) or (is_number and not self._is_openai)
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
