"""A model in the layout of the Hugging Face hub: config.json, safetensors, the files of a tokenizer."""

import json
from pathlib import Path

from moejax import durable
from moejax.config import require
from moejax.interop import safe_files
from moejax.interop.hf import directory, families
from moejax.interop.json_file import read_json
from moejax.interop.safetensors.source import SafetensorsDir
from moejax.interop.safetensors.write import write_safetensors
from moejax.interop.tokenizer import hf as hub_tokenizer
from moejax.serving.model import Model


def load(path: Path, dtype: str | None, progress) -> Model:
    """See `moejax.load`; everything is checked before the first tensor is read."""
    config = read_json(safe_files.inside(path, "config.json"))
    description = directory.describe(config, str(path / "config.json"))
    source = SafetensorsDir(path)
    known = any((path / name).exists() for name in hub_tokenizer.VOCABULARIES)
    tokenizer = hub_tokenizer.read(path) if known else None
    m, params = directory.read(source, description, dtype, progress)
    return Model(m, params, tokenizer, description.context, origin=description.config)


def save(model: Model, path: Path, family: str | None, max_shard_bytes: int, progress) -> None:
    """See `moejax.save`."""
    chosen = family_of(model, family)
    config = directory.config_json(chosen, model.cfg, model.context, model.origin)
    with durable.appearing(path) as temp:
        temp.mkdir()
        write_safetensors(temp, directory.tensors(chosen, model.cfg, model.params), max_shard_bytes, progress)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        durable.write_file(temp / "config.json", text.encode())
        if model.tokenizer is not None:
            for name, content in hub_tokenizer.files(model.tokenizer).items():
                durable.write_file(temp / name, content)


def family_of(model: Model, name: str | None):
    """The family to write `model` as: the one called `name`, else the one it came from, else one that fits.

    Raises:
      UsageError: there is none.
    """
    require(
        model.sides is None,
        "the model has a balancing bias beside its parameters, for which the files of the hub have no place; "
        "dataclasses.replace(model, sides=None) leaves it out",
    )
    name = name or model.origin.get("model_type")
    return families.of_model(model.cfg) if name is None else families.named(name, "family")
