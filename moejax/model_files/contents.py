"""What is kept at a place, as far as it can be known without reading a parameter."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moejax import model_io, saved_model, tokenizer
from moejax import specs as sp
from moejax.config import ModelConfig, Run
from moejax.errors import MoejaxError
from moejax.interop import json_file, safe_files
from moejax.interop.gguf.architectures import hub_model
from moejax.interop.gguf.source import GgufFile
from moejax.interop.hf import directory
from moejax.interop.safetensors.source import SafetensorsDir
from moejax.interop.source import TensorInfo
from moejax.interop.tokenizer import gguf as gguf_tokenizer
from moejax.interop.tokenizer import hf as hub_tokenizer
from moejax.model import forward as decoder
from moejax.model_io import Kind
from moejax.training.step_store import StepStore


@dataclasses.dataclass(frozen=True)
class Contents:
    """A model on disk. What cannot be known is None, and `unknown` says why."""

    kind: str
    name: str | None  # of the recipe of a run
    family: str | None  # as the hub calls it
    model: ModelConfig | None
    context: int | None  # tokens
    text: tokenizer.Tokenizer | None
    stored: Mapping[str, int]  # parameters of each type in the files
    files: Mapping[str, int]  # bytes of each; of a directory, all that lies below
    steps: tuple[int, ...] = ()  # checkpoints of a run
    unknown: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {
            "kind": self.kind,
            "name": self.name,
            "family": self.family,
            **(_shape(self.model) if self.model else {"parameters": sum(self.stored.values())}),
            "stored": dict(self.stored),
            "context": self.context,
            "tokenizer": _describe(self.text) if self.text else None,
            "checkpoints": list(self.steps),
            "files": dict(self.files),
            "unknown": list(self.unknown),
        }


def read(path: Path) -> Contents:
    """What is kept at `path`.

    Raises:
      UsageError: there is no model.
      CheckpointError: the file that says what it is, is damaged.
    """
    readers = {Kind.MOEJAX: _own_directory, Kind.HF: _hub_directory, Kind.GGUF: _gguf_file}
    return readers[model_io.kind_of(path)](path)


def _own_directory(path: Path) -> Contents:
    config = saved_model.read_config(path)
    m, is_run = config.model, isinstance(config, Run)
    parts = _Parts()
    text, origin = parts.get(lambda: saved_model.read_origin(path), (None, {}))
    return Contents(
        kind="training run" if is_run else "model of moejax.save",
        name=config.name if is_run else None,
        family=origin.get("model_type"),
        model=m,
        context=config.train.seq_len if is_run else config.context,
        text=text,
        stored={m.param_dtype: sp.count(decoder.specs(m))},
        files=_sizes(path),
        steps=tuple(StepStore(path).steps()),
        unknown=tuple(parts.reasons),
    )


def _hub_directory(path: Path) -> Contents:
    config = json_file.read_json(safe_files.inside(path, "config.json"))
    parts = _Parts()
    described = parts.get(lambda: directory.describe(config, str(path / "config.json")))
    source = parts.get(lambda: SafetensorsDir(path))
    return Contents(
        kind="directory in the layout of the Hugging Face hub",
        name=None,
        family=str(config.get("model_type")),
        model=described and described.model,
        context=described and described.context,
        text=parts.get(lambda: hub_tokenizer.read(path)),
        stored=_stored(map(source.info, source.names())) if source else {},
        files=_sizes(path),
        unknown=tuple(parts.reasons),
    )


def _gguf_file(path: Path) -> Contents:
    file = GgufFile(path)
    parts = _Parts()
    described = parts.get(lambda: directory.describe(hub_model(path)[0], str(path)))
    stored = Counter()
    for tensor in file.tensors.values():
        stored[tensor.kind.name] += math.prod(tensor.shape)
    return Contents(
        kind="GGUF file",
        name=None,
        family=str(file.metadata.get("general.architecture")),
        model=described and described.model,
        context=described and described.context,
        text=parts.get(lambda: gguf_tokenizer.read(file.metadata, str(path))),
        stored=dict(stored.most_common()),
        files={path.name: path.stat().st_size},
        unknown=tuple(parts.reasons),
    )


class _Parts:
    """Parts of a model, read one after the other; `reasons` has why some could not be."""

    def __init__(self):
        self.reasons: list[str] = []

    def get(self, read, otherwise=None):
        try:
            return read()
        except MoejaxError as error:
            self.reasons.append(str(error))
            return otherwise


def _stored(infos: Iterable[TensorInfo]) -> dict[str, int]:
    """Parameters of each dtype, most first."""
    stored = Counter()
    for info in infos:
        stored[str(info.dtype)] += math.prod(info.shape)
    return dict(stored.most_common())


def _shape(m: ModelConfig) -> dict[str, Any]:
    specs = decoder.specs(m)
    ffns = [block.ffn for group in m.groups for block in group.blocks]
    experts = {(ffn.num_experts, ffn.selector.num_slots) for ffn in ffns if hasattr(ffn, "selector")}
    return {
        "parameters": sp.count(specs),
        "active_parameters": sp.count_active(specs),
        "layers": m.num_layers,
        "width": m.width,
        "vocabulary": m.vocab,
        "experts": [{"count": count, "per_token": slots} for count, slots in sorted(experts)],
    }


def _describe(text: tokenizer.Tokenizer) -> dict[str, Any]:
    name = lambda id: None if id is None else text.backend.id_to_token(id)
    return {
        "tokens": text.vocab,
        "begin": name(text.bos),
        "ends": [name(id) for id in text.ends],
        "chat_template": text.chat_template is not None,
    }


def _sizes(root: Path) -> dict[str, int]:
    """Bytes of the files in a directory, and of all that lies below each directory in it."""
    sizes = {}
    for path in sorted(root.iterdir()):
        if path.is_dir():
            below = [file for file in path.rglob("*") if file.is_file()]
            sizes[f"{path.name}/"] = sum(file.stat().st_size for file in below)
        elif path.is_file():
            sizes[path.name] = path.stat().st_size
    return sizes
