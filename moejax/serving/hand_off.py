"""Keys and values of prompts that one engine has read, on their way to another that writes on.

A parcel is a frame of bytes; nothing in it is ever executed, and nothing is allocated before it is known to
be what the receiver's own model would hold:

    "moejax.1" | u32 bytes of the header | u64 bytes of the pages | header, JSON | pages | 16 bytes of blake2b

The header names every array with its dtype and shape. The digest covers all that comes before it. Who sends
waits while nobody receives, and who receives takes a parcel only when it has room: so prompts that nobody can
write on hold back the reading of others.
"""

import dataclasses
import hashlib
import json
import select
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, Protocol

import ml_dtypes
import numpy as np

from moejax.config import require
from moejax.errors import DataError, RetryError
from moejax.serving.engine import Step, serve
from moejax.serving.plan import Executor, Scheduler
from moejax.serving.state import Job, ServeState

_MAGIC, _HEAD, _DIGEST = b"moejax.1", struct.Struct("<8sIQ"), 16
_LONGEST_HEADER = 2**20
_TYPES = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in ("float32", "float16", ml_dtypes.bfloat16, "int8", "uint8", "int32", "int64", "uint64")
}

Arrays = Mapping[str, np.ndarray]  # [pages, ...]


class PageStore(Protocol):
    """An executor whose pages can leave it and arrive in it."""

    def page_layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of one page, by array."""

    def read_pages(self, pages: Sequence[int]) -> Arrays:
        """What the pages hold after all steps that were submitted."""

    def write_pages(self, pages: Sequence[int], arrays: Arrays) -> None:
        """Fill pages before any step that is submitted from now on."""


@dataclasses.dataclass(frozen=True, eq=False)
class Parcel:
    """A request between two engines."""

    job: int
    prompt: str  # digest of the tokens, so that both speak of the same request
    token: int  # that follows the prompt; -1 = the text ends there
    pages: Arrays


def digest(tokens: Sequence[int]) -> str:
    """A name for the tokens of a prompt."""
    return hashlib.blake2b(np.asarray(tokens, "<i8").tobytes(), digest_size=_DIGEST).hexdigest()


def send(stream: BinaryIO, parcel: Parcel) -> None:
    """Write a parcel; returns when the stream has taken it.

    Raises:
      RetryError: nobody receives any more.
    """
    arrays = {name: np.ascontiguousarray(x) for name, x in parcel.pages.items()}
    described = [[name, x.dtype.name, x.shape] for name, x in arrays.items()]
    header = json.dumps([parcel.job, parcel.prompt, parcel.token, described]).encode()
    size = sum(x.nbytes for x in arrays.values())
    parts = [_HEAD.pack(_MAGIC, len(header), size), header]
    parts += [x.view(np.uint8).reshape(-1).data for x in arrays.values()]
    check = hashlib.blake2b(digest_size=_DIGEST)
    try:
        for part in parts:
            check.update(part)
            _write(stream, part)
        _write(stream, check.digest())
        stream.flush()
    except (BrokenPipeError, ConnectionError) as error:
        raise RetryError("the engine that writes is gone; start both again") from error


def receive(stream: BinaryIO, layout: Mapping, most_pages: int) -> Parcel | None:
    """Read a parcel; None where the stream ends.

    Args:
      stream: of parcels.
      layout: of the receiver's own pages; see `PageStore`.
      most_pages: of one request.

    Raises:
      DataError: the bytes are no parcel, or damaged.
      UsageError: the pages are of another model, or of another page size.
      RetryError: the stream ends within a parcel.
    """
    head = _read(stream, _HEAD.size, whole=False)
    if not head:
        return None
    magic, header_size, size = _HEAD.unpack(head)
    if magic != _MAGIC or header_size > _LONGEST_HEADER:
        raise DataError("what arrives is no parcel of pages; connect this engine to one that hands off pages")
    header = _read(stream, header_size)
    job, prompt, token, described = _parsed(header)
    shapes = {name: (np.dtype(_TYPES[kind]), tuple(shape)) for name, kind, shape in described}
    _check(shapes, layout, most_pages, size)
    body = _read(stream, size)
    check = hashlib.blake2b(digest_size=_DIGEST)
    for part in (head, header, body):
        check.update(part)
    if check.digest() != bytes(_read(stream, _DIGEST)):
        raise DataError(f"the pages of request {job} were damaged on their way; start both engines again")
    pages, at = {}, 0
    for name, (dtype, shape) in shapes.items():
        count = int(np.prod(shape, dtype=np.int64))
        pages[name] = np.frombuffer(body, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    return Parcel(job, prompt, token, pages)


def _parsed(header: bytes) -> tuple[int, str, int, list]:
    """The header, each part of it of the type that it should have."""
    try:
        job, prompt, token, described = json.loads(header)
        whole = all(type(number) is int for number in (job, token)) and isinstance(prompt, str)
        for name, kind, shape in described:
            sizes = all(type(size) is int and 0 <= size < 2**32 for size in shape)
            whole = whole and isinstance(name, str) and kind in _TYPES and sizes
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"the header of a parcel cannot be read: {error}") from error
    if not whole:
        raise DataError("the header of a parcel is not one that an engine writes")
    return job, prompt, token, described


def _check(shapes: Mapping, layout: Mapping, most_pages: int, size: int) -> None:
    """Refuse pages that the receiver could not use, before there is memory for them."""
    if not shapes and not size:
        return  # nothing follows the first token
    wanted = {name: (np.dtype(dtype), tuple(shape)) for name, (shape, dtype) in layout.items()}
    found = {name: (dtype, shape[1:]) for name, (dtype, shape) in shapes.items()}
    require(found == wanted, f"pages of {found} arrive, this engine's are {wanted}; run one model in both")
    counts = {shape[:1] for _, shape in shapes.values()}
    fits = len(counts) == 1 and all(count[0] <= most_pages for count in counts)
    require(fits, f"a request of {sorted(counts)} pages arrives, at most {most_pages} have room")
    bytes_there = sum(dtype.itemsize * int(np.prod(shape, dtype=object)) for dtype, shape in shapes.values())
    if bytes_there != size:
        raise DataError(f"a parcel of {size} bytes says that it has {bytes_there}")


def _write(stream: BinaryIO, part) -> None:
    """All of it; unbuffered streams take what they can."""
    view = memoryview(part)
    while len(view):
        view = view[stream.write(view) :]


def _read(stream: BinaryIO, size: int, whole: bool = True) -> bytearray:
    """So many bytes; none at all, unless `whole`, if the stream ends before the first."""
    data, at = bytearray(size), 0
    while at < size:
        count = stream.readinto(memoryview(data)[at:])
        if not count and not at and not whole:
            return bytearray()
        if not count:
            raise RetryError("the engine that reads prompts went away within a parcel; start both again")
        at += count
    return data


class Inbox:
    """Where parcels arrive.

    Args:
      stream: unbuffered, so that what has arrived can be seen.
      layout: of the receiver's own pages.
      most_pages: of one request.
    """

    def __init__(self, stream: BinaryIO, layout: Mapping, most_pages: int):
        self._stream, self._layout, self._most_pages = stream, layout, most_pages

    def take(self, wait: bool) -> Parcel | None:
        """The next parcel; None if none has arrived and nobody wants to wait for it.

        Raises:
          RetryError: the sender is gone, and somebody waits.
        """
        ready, _, _ = select.select([self._stream], [], [], None if wait else 0)
        parcel = receive(self._stream, self._layout, self._most_pages) if ready else None
        if wait and parcel is None:
            raise RetryError("the engine that reads prompts went away before all were read; start both again")
        return parcel


def read_prompts(
    jobs: Iterable[Job], scheduler: Scheduler, executor: Executor, state: ServeState, ends: frozenset[int]
) -> Iterator[tuple[Step, tuple[Parcel, ...]]]:
    """Write the first token of every job; with each step come the parcels of those that go on elsewhere.

    Args:
      executor: also a `PageStore`.
    """
    longer: dict[int, bool] = {}

    def first_tokens():
        for job in jobs:
            longer[job.id] = job.max_new > 1
            yield dataclasses.replace(job, max_new=1)

    for step in serve(first_tokens(), scheduler, executor, state, ends):
        runs = {work.run.job.id: work.run for work in step.result.plan.works}
        token = {drawn.job: drawn.token for drawn in step.written}
        parcels = []
        for job, _ in step.finished:
            if longer.pop(job.id):
                # Its pages are free by now, but no step since then was asked to fill them.
                pages = executor.read_pages(runs[job.id].pages) if job.id in token else {}
                parcels.append(Parcel(job.id, digest(job.prompt), token.get(job.id, -1), pages))
        yield step, tuple(parcels)
