"""A GGUF file's tensors as the hub's files of the same model hold them: names, rows, experts, scales."""

import dataclasses
import re
from collections.abc import Collection, Mapping

import numpy as np

from moejax.errors import CheckpointError
from moejax.interop.gguf import names, quants
from moejax.interop.gguf.quants import Kind
from moejax.interop.gguf.source import GgufFile
from moejax.interop.source import Index, TensorInfo

LAYER_NAME = re.compile(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)")

EXPERTS = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts"}  # how many, in the hub's config


@dataclasses.dataclass(frozen=True)
class View:
    """How a tensor of the hub lies in the file."""

    name: str  # in the file
    expert: tuple[int, ...] = ()  # which part of it
    heads: int = 0  # of a rotary product whose two halves of each head take turns there, row by row
    shift: float = 0.0  # what the file's values are larger by
    dtype: np.dtype | None = None  # narrower than the file's, but holds these values


@dataclasses.dataclass(frozen=True)
class HubView:
    """Tensors of a file under the hub's names."""

    file: GgufFile
    views: Mapping[str, View]

    @property
    def metadata(self) -> Mapping[str, object]:
        """What the file says beside its tensors."""
        return self.file.metadata

    def names(self) -> Collection[str]:
        return self.views.keys()

    def info(self, name: str) -> TensorInfo:
        view = self.views[name]
        found = self.file.info(view.name)
        shape, dtype = found.shape[len(view.expert) :], view.dtype or found.dtype
        return dataclasses.replace(found, shape=shape, dtype=dtype)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        view = self.views[name]
        if view.heads:
            return self._read_halves(view, index)
        value = self.file.read(view.name, (*view.expert, *index))
        value = value - value.dtype.type(view.shift) if view.shift else value
        return value.astype(view.dtype) if view.dtype else value

    def _read_halves(self, view: View, index: Index) -> np.ndarray:
        """Rows of heads: first halves, then second halves, as the hub has them."""
        rows = self.file.info(view.name).shape[0]
        width = rows // view.heads
        first, rest = (index[0], index[1:]) if index else (slice(None), ())
        start, stop = (first, first + 1) if not isinstance(first, slice) else first.indices(rows)[:2]
        low, high = start // width, -(-stop // width)
        value = self.file.read(view.name, (slice(low * width, high * width), *rest))
        halves = value.reshape(high - low, width // 2, 2, *value.shape[1:]).swapaxes(1, 2)
        value = halves.reshape(value.shape)[start - low * width : stop - low * width]
        return np.ascontiguousarray(value if isinstance(first, slice) else value[0])


def hub_view(file: GgufFile, config: Mapping[str, object], ignored: Collection[str] = ()) -> HubView:
    """The tensors of `file` under the hub's names.

    Args:
      config: of the hub, with model_type.
      ignored: tensors of the file that the config speaks of.

    Raises:
      CheckpointError: a tensor of the file is not of this kind of model.
    """
    views, strange = {}, []
    for name in file.names():
        own = _once(name) or _per_layer(file, name, config)
        if own:
            views |= own
        elif name not in ignored:
            strange.append(name)
    if strange:
        kind = config["model_type"]
        raise CheckpointError(f"{file.path}: a {kind} has no tensor {', '.join(map(repr, strange[:9]))}")
    if (
        config["model_type"] == "gemma3_text"
    ):  # there a norm's scale is the parameter, on the hub it is 1 more
        views = {
            name: dataclasses.replace(view, shift=1.0) if "norm" in name else view
            for name, view in views.items()
        }
    return _narrowed(HubView(file, views))


def _narrowed(whole: HubView) -> HubView:
    """The same, with vectors in the bfloat16 of the matrices where that holds them; files keep float32."""
    matrices = {tensor.kind for tensor in whole.file.tensors.values() if len(tensor.shape) > 1}
    if Kind.BF16 not in matrices or not matrices <= {Kind.BF16, Kind.F32}:
        return whole
    views, narrow = dict(whole.views), quants.dtype(Kind.BF16)
    for name, view in whole.views.items():
        if whole.file.tensors[view.name].kind == Kind.F32:
            value = whole.read(name)
            if np.array_equal(value, value.astype(narrow)):
                views[name] = dataclasses.replace(view, dtype=narrow)
    return HubView(whole.file, views)


def _once(name: str) -> dict[str, View] | None:
    known = names.ONCE.get(name.removesuffix(".weight"))
    return {f"{known}.weight": View(name)} if known and name.endswith(".weight") else None


def _per_layer(file: GgufFile, name: str, config: Mapping[str, object]) -> dict[str, View] | None:
    found = LAYER_NAME.fullmatch(name)
    kind = config["model_type"]
    there = names.PER_LAYER[kind].get(found[2]) if found else None
    if there is None:
        return None
    hub = f"model.layers.{int(found[1])}.{there}.{found[3]}"
    if "{expert}" in there:
        count, promised = file.info(name).shape[0], config[EXPERTS[kind]]
        if count != promised:
            raise CheckpointError(
                f"{file.path}: tensor {name!r} has {count} experts, the file says {promised}"
            )
        return {hub.format(expert=expert): View(name, (expert,)) for expert in range(count)}
    if found[2] in names.ROTARY_PAIRS and kind in names.PAIRED:
        heads = config["num_attention_heads" if found[2] == "attn_q" else "num_key_value_heads"]
        rows = file.info(name).shape[0]
        if rows % (2 * heads):
            raise CheckpointError(
                f"{file.path}: tensor {name!r} has {rows} rows, which are not {heads} heads"
            )
        return {hub: View(name, heads=heads)}
    return {hub: View(name)}
