"""The hub's tensors of a model as those of a GGUF file: the way back of `hub_view`."""

import collections
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from moejax.config import require
from moejax.interop.gguf import names, quants
from moejax.interop.gguf.architectures import FREQUENCIES, llama3_factors
from moejax.interop.gguf.header import float32
from moejax.interop.gguf.quants import Kind
from moejax.interop.gguf.write import Outgoing
from moejax.interop.source import TensorInfo

HUB_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
NUMBER = re.compile(r"\.experts\.(\d+)\.")
KINDS = {"F32": Kind.F32, "BF16": Kind.BF16, "Q8_0": Kind.Q8_0}
BLOCK = 32  # numbers of Q8_0
EXACT = "ffn_gate_inp"  # a router's choice hangs on its last bits


def outgoing(tensors: Iterable, config: Mapping[str, Any], tensor_type: str | None) -> list[Outgoing]:
    """The tensors of the file.

    Args:
      tensors: (name, TensorInfo, function that makes it) under the hub's names.
      config: of the hub.
      tensor_type: F32, BF16 or Q8_0; None keeps each dtype. Vectors and routers are F32 always, as are
        matrices whose rows are not whole blocks of Q8_0.

    Raises:
      UsageError: there is no such type.
    """
    known = ", ".join(KINDS)
    require(tensor_type in (None, *KINDS), f"tensor_type={tensor_type!r} is not one of {known}")
    merged = collections.defaultdict(list)
    for name, info, make in tensors:
        merged[file_name(name, config["model_type"])].append((info, make))
    found = [_extra(config)] if config["rope_parameters"].get("rope_type") == "llama3" else []
    for name, parts in merged.items():
        info = parts[0][0]
        stacked = name.endswith("_exps.weight")
        shape = (len(parts), *info.shape) if stacked else info.shape
        kind = KINDS[tensor_type] if tensor_type else _kept(info.dtype)
        if len(shape) == 1 or EXACT in name or (kind is Kind.Q8_0 and shape[-1] % BLOCK):
            kind = Kind.F32
        makes = [make for _, make in parts]
        found.append(Outgoing(name, shape, kind, _parts(makes, _heads(name, config))))
    return found


class Planned:
    """A file that is not written yet, as those who read files look at it."""

    def __init__(self, path: str, metadata: Mapping[str, Any], tensors: Sequence[Outgoing]):
        self.path = path
        self.metadata = {
            key: float32(own) if isinstance(own, float) else own for key, own in metadata.items()
        }
        self._tensors = {tensor.name: tensor for tensor in tensors}

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def info(self, name: str) -> TensorInfo:
        return TensorInfo(self._tensors[name].shape, quants.dtype(self._tensors[name].kind), self.path)

    def read(self, name: str) -> np.ndarray:
        return np.concatenate(list(self._tensors[name].parts()))


def file_name(name: str, model_type: str) -> str:
    """llama.cpp's name for a tensor of the hub; experts share one."""
    once = {hub: own for own, hub in names.ONCE.items()}
    stem, _, end = name.rpartition(".")
    if stem in once:
        return f"{once[stem]}.{end}"
    layer, inner, end = HUB_LAYER.fullmatch(name).groups()
    own = {hub: own for own, hub in names.PER_LAYER[model_type].items()}
    return f"blk.{layer}.{own[NUMBER.sub('.experts.{expert}.', inner)]}.{end}"


def _kept(dtype: np.dtype) -> Kind:
    return next((kind for kind, own in quants.PLAIN.items() if own == dtype), Kind.F32)


def _heads(name: str, config: Mapping[str, Any]) -> int:
    """Of a rotary product whose halves take turns in the file; 0 for any other tensor."""
    own = name.split(".")[2] if name.startswith("blk.") else ""
    if own not in names.ROTARY_PAIRS or config["model_type"] not in names.PAIRED:
        return 0
    return config["num_attention_heads" if own == "attn_q" else "num_key_value_heads"]


def _parts(makes: list[Callable[[], np.ndarray]], heads: int) -> Callable:
    """What gives one tensor after the other, its rows in llama.cpp's order."""

    def parts():
        for make in makes:
            value = make()
            if heads:
                halves = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2)
                value = halves.reshape(value.shape)
            yield np.ascontiguousarray(value)

    return parts


def _extra(config: Mapping[str, Any]) -> Outgoing:
    own = config["rope_parameters"]
    factors = llama3_factors(config["head_dim"] // 2, own["rope_theta"], own).astype(np.float32)
    return Outgoing(FREQUENCIES, factors.shape, Kind.F32, lambda: iter([factors]))
