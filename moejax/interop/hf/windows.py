"""Which layers look back over a window only: `layer_types` and `sliding_window` in a config.json."""

from collections.abc import Callable
from typing import Any

from moejax.config import require
from moejax.interop.hf.tensor_map import layers

KINDS = ("sliding_attention", "full_attention")


def read(fields, num_layers: int, window: int | None, slides: Callable[[int], bool]) -> list[int | None]:
    """The window of every layer, None for all that came before.

    Args:
      window: of the layers that have one.
      slides: whether a layer has one, where the file does not list the layers.

    Raises:
      UsageError: the list is not one known kind for every layer, or there is no window where one is needed.
    """
    kinds = fields.take(
        "layer_types", list, [kind(None) if not slides(layer) else KINDS[0] for layer in range(num_layers)]
    )
    require(
        len(kinds) == num_layers and all(kind in KINDS for kind in kinds),
        f"{fields.where}: layer_types={kinds} must name {num_layers} layers, each {' or '.join(KINDS)}",
    )
    require(
        window is not None or KINDS[0] not in kinds,
        f"{fields.where}: layer_types has {KINDS[0]}, but sliding_window is absent; add it",
    )
    return [window if kind == KINDS[0] else None for kind in kinds]


def kind(window: int | None) -> str:
    """The name of a layer with this window."""
    return KINDS[window is None]


def write(m) -> dict[str, Any]:
    """`layer_types` and the `sliding_window` of the layers that have one."""
    found = [block.attn.window for _, block, _ in layers(m)]
    return {
        "layer_types": [kind(window) for window in found],
        "sliding_window": next((window for window in found if window is not None), None),
    }
