"""Grouped products at the shapes of real models, beside one dense product of as many FLOPs."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from moejax.bench import kernel_peers
from moejax.bench.contest import DENSE, OURS, Contest
from pallas_kernels import grouped_matmul, grouped_outer, implementations
from pallas_kernels.grouped_matmul import api
from pallas_kernels.grouped_matmul.shapes import DISTRIBUTIONS, GroupedShape

PRODUCTS = ("forward", "dlhs", "drhs")


def contests(shapes: tuple[GroupedShape, ...], dtype) -> Iterator[Contest]:
    """Every product of every shape, with its rows spread over the groups in every way."""
    for shape in shapes:
        for product in PRODUCTS:
            for spread in DISTRIBUTIONS:
                yield Contest(
                    f"{product} {shape.name} {spread}",
                    2 * shape.M * shape.K * shape.N,
                    functools.partial(_contestants, shape, product, spread, dtype),
                )


def _contestants(shape: GroupedShape, product: str, spread: str, dtype) -> Mapping[str, Callable[[], Any]]:
    lhs, rhs = _operands(shape, product, dtype)
    size_G = jnp.asarray(DISTRIBUTIONS[spread](shape.M, shape.G))
    run = {
        "forward": grouped_matmul,
        "dlhs": functools.partial(grouped_matmul, transpose_rhs=True),
        "drhs": grouped_outer,
    }[product]
    rivals = {OURS: run}
    for name, module in api.IMPLEMENTATIONS.items():
        if implementations.platform() == module.PLATFORM:
            rivals[f"{OURS} {name}"] = functools.partial(run, implementation=name)
    tasks = {
        name: functools.partial(jax.jit(rival), lhs, rhs, size_G)
        for name, rival in {**rivals, **kernel_peers.find(product)}.items()
    }
    return tasks | {DENSE: functools.partial(jax.jit(_dense(product)), lhs, rhs)}


def _operands(shape: GroupedShape, product: str, dtype):
    """(lhs, rhs) of a product: rows and matrices, or rows and rows."""
    wide = {"forward": shape.K, "dlhs": shape.N, "drhs": shape.K}[product]
    lhs_key, rhs_key = jax.random.split(jax.random.key(0))
    lhs_MK = jax.random.normal(lhs_key, (shape.M, wide), dtype)
    matrices = (shape.G, shape.K, shape.N)
    rhs_dims = (shape.M, shape.N) if product == "drhs" else matrices
    return lhs_MK, jax.random.normal(rhs_key, rhs_dims, dtype)


def _dense(product: str):
    """All rows with the first group's matrix: what a product costs that need not look who is where."""
    if product == "drhs":
        return lambda lhs, rhs: lhs.T @ rhs
    return (lambda lhs, rhs: lhs @ rhs[0].T) if product == "dlhs" else (lambda lhs, rhs: lhs @ rhs[0])
