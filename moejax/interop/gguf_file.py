"""A model in a GGUF file: metadata, tokenizer and tensors in one."""

from pathlib import Path

from moejax import durable
from moejax.config import require
from moejax.interop.gguf import kept, vocabulary
from moejax.interop.gguf.architectures import hub_config, hub_model
from moejax.interop.gguf.header import float32
from moejax.interop.gguf.hub_out import Planned, outgoing
from moejax.interop.gguf.metadata import metadata_of
from moejax.interop.gguf.write import write_gguf
from moejax.interop.hf import directory
from moejax.interop.hub_directory import family_of
from moejax.interop.tokenizer import gguf as gguf_tokenizer
from moejax.serving.model import Model


def load(path: Path, dtype: str | None, progress, keep_quantised: bool = False) -> Model:
    """See `moejax.load`; everything is checked before the first tensor is read."""
    config, source = hub_model(path)
    description = directory.describe(config, str(path))
    tokenizer = gguf_tokenizer.read(source.metadata, str(path))
    read = kept.read if keep_quantised else directory.read
    m, params = read(source, description, dtype, progress)
    return Model(m, params, tokenizer, description.context, origin=description.config)


def save(model: Model, path: Path, family: str | None, tensor_type: str | None, progress) -> None:
    """See `moejax.save`."""
    chosen, m = family_of(model, family), model.cfg
    config = directory.config_json(chosen, m, model.context, model.origin)
    metadata = metadata_of(config, path.stem) | vocabulary.metadata_of(model.tokenizer, m.vocab)
    tensors = outgoing(directory.tensors(chosen, m, model.params), config, tensor_type)
    _require_same(chosen, m, Planned(str(path), metadata, tensors))
    with durable.appearing(path) as temp:
        write_gguf(temp, metadata, tensors, progress)


def _require_same(family, m, planned: Planned) -> None:
    """Raise UsageError unless whoever reads the file will find the model `m` in it."""
    found = _rounded(family.write(directory.describe(hub_config(planned), planned.path).model))
    for name, wanted in _rounded(family.write(m)).items():
        require(
            found.get(name) == wanted,
            f"{name}={wanted!r} of this model has no place in a GGUF file, it would say {found.get(name)!r}",
        )


def _rounded(value):
    """Numbers as float32, which GGUF files have."""
    if isinstance(value, dict):
        return {name: _rounded(own) for name, own in value.items()}
    return float32(value) if isinstance(value, float) else value
