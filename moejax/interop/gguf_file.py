"""A model in a GGUF file: metadata, tokenizer and tensors in one."""

from pathlib import Path

from moejax.interop.gguf.architectures import hub_model
from moejax.interop.hf import directory
from moejax.interop.tokenizer import gguf as gguf_tokenizer
from moejax.serving.model import Model


def load(path: Path, dtype: str | None, progress) -> Model:
    """See `moejax.load`; everything is checked before the first tensor is read."""
    config, source = hub_model(path)
    description = directory.describe(config, str(path))
    tokenizer = gguf_tokenizer.read(source.metadata, str(path))
    m, params = directory.read(source, description, dtype, progress)
    return Model(m, params, tokenizer, description.context, origin=description.config)
