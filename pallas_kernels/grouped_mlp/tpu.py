"""The op on TPU: the kernels of `grouped_swiglu` and `grouped_matmul`."""

from pallas_kernels.grouped_mlp.composed import backward, forward

__all__ = ["backward", "forward", "refusal"]

PLATFORM = "tpu"


def refusal(function, *operands, **static) -> None:
    """It serves everything: its parts pick for themselves."""
