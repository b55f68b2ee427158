"""A model as a directory in the layout of the Hugging Face hub: config.json, safetensors, a tokenizer."""

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from moejax import specs as sp
from moejax.config import require
from moejax.errors import UsageError
from moejax.interop.hf import families
from moejax.interop.hf.family import Family
from moejax.interop.hf.fields import BOOKKEEPING, Fields
from moejax.interop.place import load_params
from moejax.interop.source import TensorInfo, TensorSource
from moejax.model import forward as decoder

DTYPES = ("float32", "bfloat16")  # to compute in
WIDER = {"float16": "float32"}  # what a model here does not compute in is kept in the next that holds it


@dataclasses.dataclass(frozen=True)
class Description:
    """What a config.json says."""

    family: Family
    model: Any  # ModelConfig
    context: int
    config: dict[str, Any]


def describe(config: dict[str, Any], where: str) -> Description:
    """The model that a config.json speaks of.

    Raises:
      UsageError: the family is unknown, or a field cannot be honoured; names it.
    """
    family = families.of_config(config, where)
    fields = Fields(config, where)
    try:
        model = family.read(fields)
    except ArithmeticError as error:
        raise UsageError(f"{where}: a number in it divides by 0 or overflows: {error}; correct it") from error
    context = fields.context
    fields.done()
    return Description(family, model, context, config)


def read(source: TensorSource, description: Description, dtype: str | None = None, progress=None):
    """(ModelConfig, parameters) of the tensors in `source`.

    Args:
      dtype: to compute in and to round to; None takes that of most tensors, and rounds nothing.

    Raises:
      CheckpointError: the tensors are not those of the model.
      UsageError: they are of a dtype that is not computed in.
    """
    family = description.family
    source = family.view(source)
    chosen = dtype or _usual(source)
    require(
        chosen in DTYPES,
        f"most numbers of the model are {chosen}, in which nothing is computed here; "
        f"give dtype=, one of {', '.join(DTYPES)}",
    )
    m = dataclasses.replace(description.model, dtype=chosen, param_dtype=chosen)
    table, specs = family.tensor_map(m), decoder.specs(m)
    return m, load_params(source, table, m, specs, rounding=dtype is not None, progress=progress)


def _usual(source: TensorSource) -> str:
    """The dtype of most parameters."""
    sizes = collections.Counter()
    for info in map(source.info, source.names()):
        sizes[WIDER.get(str(info.dtype), str(info.dtype))] += math.prod(info.shape)
    return max(sizes, key=sizes.get, default="float32")


def tensors(family: Family, m, params) -> Iterator[tuple[str, TensorInfo, Any]]:
    """(name there, what it is, function that makes it) of every tensor of the model."""
    specs = decoder.specs(m)
    sp.check(params, specs)
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    ours = {sp.path_name(path): leaf for path, leaf in flat}
    for place in family.tensor_map(m).places(m, specs):
        dtype = np.dtype(ours[place.leaves[0]].dtype)

        def make(place=place):
            return place.turn.forth([np.asarray(ours[leaf][place.at]) for leaf in place.leaves])

        yield place.name, TensorInfo(place.shape, dtype, ""), make


def config_json(family: Family, m, context: int, origin: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model; what `origin` says beside the model's own settings stays."""
    kept = {name: value for name, value in origin.items() if name in BOOKKEEPING}
    kept.pop("torch_dtype", None)  # the older name of dtype
    own = {"architectures": [family.architecture], "model_type": family.model_type}
    return kept | own | family.config(m) | {"max_position_embeddings": context, "dtype": m.param_dtype}
