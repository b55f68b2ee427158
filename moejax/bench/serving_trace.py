"""Requests of public traces: when they came, how long they were, and where they began alike."""

import csv
import dataclasses
import datetime
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator

from moejax.config import require
from moejax.errors import UsageError
from moejax.serving.state import Job

BLOCK = 512  # tokens of a hashed block of a Mooncake trace
_BASE = 251  # of the digits that tell texts apart; small numbers are cheap to keep
_CSV = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_KEYS = ("timestamp", "input_length", "output_length", "hash_ids")


@dataclasses.dataclass(frozen=True)
class Request:
    """A line of a trace."""

    arrival: float  # seconds after the first one
    prompt: int  # tokens
    output: int  # tokens
    blocks: tuple[int, ...] = ()  # names of the blocks of the prompt, where the trace has them


def read(path: str, count: int, speed: float = 1.0) -> list[Request]:
    """The first `count` requests of a trace, which come `speed` times as fast.

    Args:
      path: a .csv as Azure publishes them (2023), or a .jsonl as Mooncake does (FAST 2025).

    Raises:
      UsageError: the file is neither, or is not there.
    """
    require(pathlib.Path(path).is_file(), f"there is no file {path}; give a trace")
    lines = _azure if pathlib.Path(path).suffix == ".csv" else _mooncake
    with open(path, encoding="utf-8") as file:
        try:
            found = list(itertools.islice(lines(file), count))
        except (KeyError, TypeError, ValueError) as error:
            wanted = f"a .csv with {', '.join(_CSV)} or a .jsonl with {', '.join(_KEYS)}"
            raise UsageError(f"{path} is no trace ({error!r}); wanted is {wanted}") from error
    require(len(found) > 0, f"{path} has no requests")
    start = min(request.arrival for request in found)
    timed = [dataclasses.replace(r, arrival=(r.arrival - start) / speed) for r in found]
    return sorted(timed, key=lambda request: request.arrival)


def jobs(requests: Iterable[Request]) -> Iterator[Job]:
    """With tokens that are alike where the trace says so, and nowhere else."""
    for id, request in enumerate(requests):
        yield Job(id, tuple(_tokens(id, request)), request.output, request.arrival)


def _tokens(id: int, request: Request) -> Iterator[int]:
    lengths = [BLOCK] * len(request.blocks) if request.blocks else [request.prompt]
    names = request.blocks or (id,)
    blocks = (_block(name, length) for name, length in zip(names, lengths, strict=True))
    return itertools.islice(itertools.chain.from_iterable(blocks), request.prompt)


def _block(name: int, length: int) -> Iterator[int]:
    digits = (name % _BASE, name // _BASE % _BASE, name // _BASE**2)
    return itertools.islice(itertools.chain(digits, itertools.repeat(0)), length)


def _azure(file) -> Iterator[Request]:
    for row in csv.DictReader(file):
        stamp, prompt, output = (row[name] for name in _CSV)
        arrival = datetime.datetime.fromisoformat(stamp[:26]).timestamp()
        yield Request(arrival, max(int(prompt), 1), max(int(output), 1))


def _mooncake(file) -> Iterator[Request]:
    for line in file:
        row = json.loads(line)
        stamp, prompt, output, blocks = (row[name] for name in _KEYS)
        require(
            len(blocks) == -(-prompt // BLOCK), f"{prompt} tokens are not {len(blocks)} blocks of {BLOCK}"
        )
        yield Request(stamp / 1000, prompt, max(output, 1), tuple(blocks))
