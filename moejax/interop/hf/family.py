"""What is known of one family of models on the hub."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from moejax import records
from moejax.config import BlockConfig, Group, ModelConfig, require
from moejax.interop.hf.fields import Fields
from moejax.interop.hf.tensor_map import TensorMap, layers
from moejax.interop.source import TensorSource

# Settings of how a model is computed and stored; any value gives the same function of the same weights.
FREE = ("dtype", "param_dtype", "remat", "scan", "groups")
FREE_OF_BLOCK = "ffn.dispatch"


@dataclasses.dataclass(frozen=True)
class Family:
    """A family has a file in this folder, and there one of these as FAMILY."""

    model_type: str  # of config.json
    architecture: str  # the class in transformers
    read: Callable[[Fields], ModelConfig]  # takes every field of the model
    write: Callable[[ModelConfig], dict]  # the fields that `read` takes; UsageError where there are none
    tensor_map: Callable[[ModelConfig], TensorMap]
    view: Callable[[TensorSource], TensorSource] = lambda source: source  # packed tensors as those of the map

    def config(self, m: ModelConfig) -> dict[str, Any]:
        """The config.json of the model `m`, without what `read` does not take.

        Raises:
          UsageError: reading it would give another model than `m`; names the setting that differs.
        """
        config = self.write(m)
        self._require_same(m, self.read(Fields(config)))
        return config

    def _require_same(self, m: ModelConfig, built: ModelConfig) -> None:
        ours, theirs = _settings(m), _settings(built)
        for path in [*ours, *(path for path in theirs if path not in ours)]:
            found, wanted = ours.get(path, "absent"), theirs.get(path, "absent")
            require(found == wanted, f"model.{path} is {found!r}; a {self.model_type} has {wanted!r}")


def kind(strategy: Any, expected: type, family: str) -> Any:
    """`strategy` itself.

    Raises:
      UsageError: it is not an `expected`.
    """
    found = type(strategy).__name__
    require(isinstance(strategy, expected), f"a layer has {found}; a {family} has {expected.__name__} there")
    return strategy


def only_block(m: ModelConfig, family: str) -> BlockConfig:
    """The block that every layer of `m` is.

    Raises:
      UsageError: layers differ.
    """
    blocks = {block for _, block, _ in layers(m)}
    require(len(blocks) == 1, f"model.groups holds {len(blocks)} kinds of blocks; a {family} has one")
    return blocks.pop()


def groups_of(blocks: Iterable[BlockConfig]) -> tuple[Group, ...]:
    """Layers as groups that repeat: the period that leaves the fewest blocks to compile, then the rest."""
    blocks = tuple(blocks)
    groups = []
    while blocks:
        best = min(range(1, len(blocks) + 1), key=lambda period: _cost(blocks, period))
        repeat = _repeats(blocks, best)
        groups.append(Group(blocks[:best], repeat))
        blocks = blocks[best * repeat :]
    return tuple(groups)


def _repeats(blocks: tuple, period: int) -> int:
    """How many times the first `period` blocks come one after the other."""
    count = 1
    while blocks[count * period : (count + 1) * period] == blocks[:period]:
        count += 1
    return count


def _cost(blocks: tuple, period: int) -> tuple[int, int]:
    """(blocks to compile if the rest repeats nothing, period)."""
    rest = len(blocks) - period * _repeats(blocks, period)
    return period + rest, period


def _settings(m: ModelConfig) -> dict[str, Any]:
    """Every setting that changes what the model computes, those of blocks by the number of the layer."""
    found = {path: value for path, value in records.flatten(m).items() if not path.startswith(FREE)}
    for layer, (_, block, _) in enumerate(layers(m)):
        for path, value in records.flatten(block).items():
            if not path.startswith(FREE_OF_BLOCK):
                found[f"layers[{layer}].{path}"] = value
    return found
