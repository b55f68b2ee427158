"""Other people's grouped products, where they are installed and the platform has them."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping

import jax
from jax import lax

from pallas_kernels import implementations

Product = Callable[..., jax.Array]  # (lhs, rhs, group_sizes)
OUTER = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)
INNER = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)


def find(product: str) -> Mapping[str, Product]:
    """By name, who else computes "forward", "dlhs" or "drhs" of a grouped product on this platform."""
    found = {"ragged_dot": _ragged_dot(product)}
    if importlib.util.find_spec("tokamax"):
        found["tokamax"] = _tokamax(product)
    platform = implementations.platform()
    if platform == "tpu":
        found["megablox"] = _megablox(product)
    if platform == "cuda" and product != "dlhs":
        found["jax example"] = _mosaic_example(product)
    return found


def _ragged_dot(product: str) -> Product:
    if product == "forward":
        return lax.ragged_dot
    dims = INNER if product == "dlhs" else OUTER
    return lambda lhs, rhs, size: lax.ragged_dot_general(lhs, rhs, size, dims)


def _tokamax(product: str) -> Product:
    tokamax = importlib.import_module(
        "tokamax"
    )  # nobody's dependency: it asks for newer versions than moejax
    if product == "forward":
        return tokamax.ragged_dot
    dims = INNER if product == "dlhs" else OUTER
    return lambda lhs, rhs, size: tokamax.ragged_dot_general(
        lhs, rhs, size, ragged_dot_dimension_numbers=dims
    )


def _megablox(product: str) -> Product:
    from jax.experimental.pallas.ops.tpu.megablox import gmm as megablox

    tiling = (512, 1024, 1024)
    if product == "drhs":
        return lambda lhs, rhs, size: megablox.tgmm(lhs.T, rhs, size, lhs.dtype, tiling)
    transposed = product == "dlhs"
    return lambda lhs, rhs, size: megablox.gmm(lhs, rhs, size, lhs.dtype, tiling, transpose_rhs=transposed)


def _mosaic_example(product: str) -> Product:
    """jax's own Hopper kernels, with the tile sizes that their files measure with."""
    from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu, transposed_ragged_dot_mgpu

    tiles = {"block_m": 64, "block_n": 128, "block_k": 64, "max_concurrent_steps": 4, "grid_block_n": 4}
    if product == "forward":
        return lambda lhs, rhs, size: ragged_dot_mgpu.ragged_dot(lhs, rhs, group_sizes=size, **tiles)
    return lambda lhs, rhs, size: transposed_ragged_dot_mgpu.transposed_ragged_dot(
        lhs, rhs, group_sizes=size, **tiles
    )
