"""The op on GPU: two products by the best kernel of `grouped_matmul`; XLA fuses gather and activation."""

from pallas_kernels.grouped_swiglu.composed import backward, forward

__all__ = ["backward", "forward", "refusal"]

PLATFORM = "cuda"


def refusal(function, *operands, **static) -> None:
    """It serves everything."""
