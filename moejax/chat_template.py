"""Chat templates: Jinja from the files of a model, rendered where a hostile one reaches and costs little."""

import atexit
import json
import pathlib
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from moejax.errors import UsageError

WORKER = pathlib.Path(__file__).with_name("chat_worker.py")
MAX_TEMPLATE = 1 << 18  # characters; the longest of well-known models have 20,000
PATIENCE = 20.0  # seconds of waiting for the worker, whose own limit is far lower


class TemplateError(UsageError):
    """A chat template refuses the messages, is broken, or does too much."""


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text of a Jinja template as transformers renders it.

    Args:
      template: of any origin.
      variables: what JSON can hold.

    Raises:
      TemplateError: it refuses the messages, is broken, or does too much.
    """
    if len(template) > MAX_TEMPLATE:
        raise TemplateError(
            f"the chat template has {len(template)} characters, more than {MAX_TEMPLATE}; shorten it"
        )
    try:
        data = json.dumps(dict(variables))
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateError(f"the messages are not made of JSON values: {error}") from None
    # The limits of the work grow with the data, which is the caller's, and not with the template.
    reply = _worker.ask(f'{{"size": {len(data)}, "template": {json.dumps(template)}, "variables": {data}}}')
    if "refused" in reply:
        raise TemplateError(f"the chat template refuses the messages: {reply['refused']}")
    if "error" in reply:
        raise TemplateError(f"the chat template cannot be rendered: {reply['error']}; check the template")
    return reply["text"]


class _Worker:
    """The process that renders, one request at a time; started when it is needed, again when it was lost."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def ask(self, request: str) -> dict:
        """The reply to one line; {"error": ...} if the process did not survive it."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                self._process.stdin.write(request.encode() + b"\n")
                self._process.stdin.flush()
                ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
                line = self._process.stdout.readline() if ready else b""
            except BrokenPipeError:
                line = b""
            if not line.endswith(b"\n"):
                self._stop()
                return {"error": "it does too much"}
        return json.loads(line)

    def stop(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._stop()
        command = [sys.executable, "-I", str(WORKER)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_worker = _Worker()
atexit.register(_worker.stop)
