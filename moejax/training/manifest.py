"""The manifest of a checkpoint: what was written, so that what is read back can be checked.

Array formats seldom carry checksums: a flipped bit in a weight restores as another weight. Every step
therefore has a MANIFEST.json with size and SHA-256 of each file, the shapes and dtypes of the tensors,
the caller's meta data and the library versions; it ends in the SHA-256 of its own content.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from moejax import durable

NAME = "MANIFEST.json"
FORMAT = 1
_LIBRARIES = ("moejax", "jax", "jaxlib", "numpy", "orbax-checkpoint")
_CHUNK_BYTES = 1 << 20


class FileEntry(NamedTuple):
    """A file of a step: path below the step's directory, size, and SHA-256 in hex."""

    path: str
    num_bytes: int
    sha256: str


class Tensor(NamedTuple):
    """A leaf of the saved tree; dtype is numpy's name, or JAX's for key arrays (key<fry>)."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Problem(NamedTuple):
    """A damaged file of a step and what is wrong with it."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class ManifestError(Exception):
    """A manifest that is missing or damaged; says what, without the file's name."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that is known about a step without opening its arrays."""

    step: int
    files: tuple[FileEntry, ...]
    tensors: tuple[Tensor, ...] = ()
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)  # the caller's, JSON
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def tensors_sha256(self) -> str:
        """Digest of names, shapes and dtypes: equal for two checkpoints that fit the same model."""
        return _digest([list(tensor) for tensor in self.tensors])

    def to_json(self) -> bytes:
        """The content of MANIFEST.json."""
        body = {
            "format": FORMAT,
            "step": self.step,
            "files": [file._asdict() for file in self.files],
            "tensors": [tensor._asdict() for tensor in self.tensors],
            "tensors_sha256": self.tensors_sha256,
            "meta": self.meta,
            "versions": self.versions,
        }
        return json.dumps({**body, "sha256": _digest(body)}, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Read what `to_json` wrote.

        Raises:
            ManifestError: the content is not what was written.
        """
        try:
            body = json.loads(data)
            if body.pop("sha256") != _digest(body):
                raise ManifestError("its content does not match its own sha256")
            if body["format"] != FORMAT:
                raise ManifestError(f"has format {body['format']}, this version of moejax reads {FORMAT}")
            files = tuple(FileEntry(**file) for file in body["files"])
            tensors = tuple(Tensor(t["name"], tuple(t["shape"]), t["dtype"]) for t in body["tensors"])
            manifest = cls(body["step"], files, tensors, body["meta"], body["versions"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"is no manifest ({type(error).__name__}: {error})") from error
        for file in files:
            if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
                raise ManifestError(f"names {file.path!r}, which lies outside the step")
        return manifest


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries whose change could change a checkpoint."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def seal(root: Path, process: int = 0) -> tuple[FileEntry, ...]:
    """Hash and sync the files below `root` that `process` wrote.

    Array writers put the number of the writing process into the path (`ocdbt.process_3/d/...`); what has
    no number belongs to process 0.
    """
    entries = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            relative = path.relative_to(root).as_posix()
            if _writer(relative) == process:
                entries.append(_seal_file(path, relative))
    return tuple(sorted(entries))


def _writer(relative: str) -> int:
    match = re.search(r"(?:^|[./])process_(\d+)(?:/|$)", relative)
    return int(match[1]) if match else 0


def _seal_file(path: Path, relative: str) -> FileEntry:
    durable.sync(path)
    with open(path, "rb") as file:
        num_bytes, sha256 = _hash(file)
    return FileEntry(relative, num_bytes, sha256)


def _hash(file) -> tuple[int, str]:
    sha256, num_bytes = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK_BYTES):
        sha256.update(chunk)
        num_bytes += len(chunk)
    return num_bytes, sha256.hexdigest()


def read(directory: Path) -> Manifest:
    """The manifest of the step in `directory`.

    Raises:
        ManifestError: it is missing, unreadable, damaged, or of another step.
    """
    try:
        data = (directory / NAME).read_bytes()
    except FileNotFoundError as error:
        raise ManifestError("is missing") from error
    except OSError as error:
        raise ManifestError(f"cannot be read ({error.strerror})") from error
    manifest = Manifest.from_json(data)
    if directory.name.isdecimal() and manifest.step != int(directory.name):
        raise ManifestError(f"is of step {manifest.step}")
    return manifest


def verify(directory: Path, level: str = "full", part: slice = slice(None)) -> list[Problem]:
    """Compare the step in `directory` with its manifest.

    Args:
        level: full (hash every file) | size | off (the manifest alone).
        part: of the list of files; several processes can share the hashing.

    Returns:
        One problem per damaged file.
    """
    try:
        manifest = read(directory)
    except ManifestError as error:
        return [Problem(NAME, str(error))]
    if level == "off":
        return []
    return list(_problems(directory, manifest.files[part], level))


def _problems(directory: Path, files: Iterable[FileEntry], level: str) -> Iterable[Problem]:
    for entry in files:
        try:
            reason = _damage(directory / entry.path, entry, level)
        except FileNotFoundError:
            reason = "is missing"
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        if reason:
            yield Problem(entry.path, reason)


def _damage(path: Path, entry: FileEntry, level: str) -> str | None:
    with open(path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes != entry.num_bytes:
            return f"has {num_bytes} bytes, the manifest says {entry.num_bytes}"
        if level == "full" and _hash(file)[1] != entry.sha256:
            return "its sha256 is not the one in the manifest"
    return None
