"""The op out of plain XLA operations: separate loops over chunks of rows for either product."""

import functools

from pallas_kernels.grouped_swiglu import composed

PLATFORM = None

forward = functools.partial(composed.forward, implementation="xla_tiles")
backward = functools.partial(composed.backward, implementation="xla_tiles")


def refusal(function, *operands, **static) -> None:
    """It serves everything."""
