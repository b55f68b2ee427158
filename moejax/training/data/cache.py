"""A directory of finished corpora, found again by a key over all that they depend on.

An entry is written beside its place and renamed, and carries the hash of each of its files: what is half
written or damaged is never read. A cache that cannot be written costs time, not the run.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile

import numpy as np

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is kept: facts as JSON, and arrays (memory-mapped when read back)."""

    meta: dict
    arrays: dict[str, np.ndarray]


def directory(cache_dir: str) -> pathlib.Path:
    """`cache_dir`, or moejax in the user's cache."""
    if cache_dir:
        return pathlib.Path(cache_dir).expanduser()
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "moejax"


def load(place: pathlib.Path) -> Entry | None:
    """The entry at `place`; None if there is none, or after removing a damaged one."""
    if not place.is_dir():
        return None
    try:
        index = json.loads((place / "index.json").read_text(encoding="utf-8"))
        for name, sha256 in index["sha256"].items():
            if _sha256(place / name) != sha256:
                raise ValueError(f"{name} is not what was written")
        meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in index["arrays"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("the cached corpus %s is damaged (%s); it is made anew", place, error)
        shutil.rmtree(place, ignore_errors=True)
        return None
    return Entry(meta, arrays)


def store(place: pathlib.Path, entry: Entry) -> None:
    """Keep `entry` at `place`; if another process was first, its entry stays."""
    temporary = None
    try:
        for folder in (place.parent.parent, place.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix="new-", dir=place.parent))
        _write(temporary, entry)
        os.rename(temporary, place)
    except OSError as error:
        if not place.is_dir():
            log.warning(
                "the corpus could not be cached at %s (%s); the next start makes it anew", place, error
            )
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: pathlib.Path, entry: Entry) -> None:
    (folder / "meta.json").write_text(json.dumps(entry.meta), encoding="utf-8")
    for name, array in entry.arrays.items():
        np.save(folder / f"{name}.npy", array)
    sha256 = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    index = {"sha256": sha256, "arrays": list(entry.arrays)}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
