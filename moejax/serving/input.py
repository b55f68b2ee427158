"""Where prompts come from: the command line, a file of lines, standard input, or a few of our own."""

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from moejax.errors import UsageError

QUESTIONS = ("What is the capital of France?", "Write one sentence about the sea.", "What is 7 times 8?")
BEGINNINGS = ("def fibonacci(n):\n", "The capital of France is", "Once upon a time,")


@dataclasses.dataclass(frozen=True)
class Input:
    """A file of requests that is open."""

    stream: BinaryIO
    name: str  # for the messages
    is_json: bool | None  # None: its first line decides
    identity: dict[str, Any]  # by which it is known again; without a hash where it can be read only once
    total: int | None  # lines that are not blank; None = not known before they are read


@contextlib.contextmanager
def open_input(path: str) -> Iterator[Input]:
    """The input of that name; "-" is standard input.

    Raises:
      UsageError: it cannot be read.
    """
    if path == "-":
        yield Input(sys.stdin.buffer, "standard input", None, {"name": path}, None)
        return
    try:
        stream = open(path, "rb")  # noqa: SIM115
        is_file = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError as error:
        raise UsageError(f"--input={path} cannot be read: {error.strerror}") from None
    with stream:
        identity: dict[str, Any] = {"name": path}
        total = None
        if is_file:
            from moejax.serving.batch_file import read_lines

            identity["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            total = sum(1 for _ in read_lines(stream))
            stream.seek(0)
        yield Input(stream, path, True if path.endswith((".jsonl", ".json")) else None, identity, total)


def read_prompt() -> str:
    """The prompt on standard input, all of it.

    Raises:
      UsageError: it is no text.
    """
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: {error}") from None


def sample_lines(model) -> list[tuple[int, bytes]]:
    """(number, line) of a few requests that show what `model` can do."""
    if model.tokenizer is not None and model.tokenizer.chat_template is not None:
        records = [{"id": text, "messages": [{"role": "user", "content": text}]} for text in QUESTIONS]
    else:
        records = [{"id": text, "prompt": text} for text in BEGINNINGS]
    return [(number, json.dumps(record).encode()) for number, record in enumerate(records, 1)]
