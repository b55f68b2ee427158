"""JSON that strangers wrote: capped in size, depth and number of values, and meaning one thing only."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from moejax.errors import CheckpointError
from moejax.interop import safe_files

MAX_BYTES = 24 << 20  # the index of a model of 140,000 tensors has 14 MB
MAX_DEPTH = 64
MAX_VALUES = 400_000  # each takes about 200 bytes of memory when it is read
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object in the JSON file `path`.

    Raises:
      CheckpointError: there is no such file, it is too large or too deep, no JSON, says a key twice, or holds
        numbers that JSON does not have.
    """
    data = safe_files.read_bytes(path, max_bytes)
    try:
        return parse(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON that can be trusted: {error}; replace the file") from error


def parse(data: bytes) -> dict[str, Any]:
    """The object in a JSON text; ValueError says what is wrong with it."""
    _check_size(data)
    value = json.loads(
        data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
    )
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def _check_size(data: bytes) -> None:
    """Raise ValueError if the text holds too many values, or nests them too deep."""
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES or data.count(b'"') > 4 * MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES:,} values")
    pieces = data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    depth = 0
    for bracket in b"".join(pieces[::2]).translate(None, _NO_BRACKETS):  # every second piece is a string
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:200]!r} is there twice")
    return found


def _no_constant(text: str):
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:50]} is too large a number")
    return number
