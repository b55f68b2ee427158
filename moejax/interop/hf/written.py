"""Fields of a config.json that several families write alike."""

from collections.abc import Callable
from typing import Any

from moejax.interop.hf import rope


def solved(guess: float, wanted: float, function: Callable[[float], float]) -> float:
    """The number of the fewest digits near `guess` for which `function` gives `wanted` to the last bit.

    `guess` itself where there is none.
    """
    for digits in range(1, 18):
        number = float(f"{guess:.{digits}g}")
        if function(number) == wanted:
            return number
    return guess


def positions(attn) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, as before there was `rope_parameters`."""
    scaling = rope.write(attn.rope_theta, attn.rope_scaling)
    theta, kind = scaling.pop("rope_theta"), scaling.pop("rope_type")
    return {"rope_theta": theta, "rope_scaling": {"type": kind, **scaling} if attn.rope_scaling else None}
