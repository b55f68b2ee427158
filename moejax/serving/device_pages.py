"""A device whose pages can leave for another process, and arrive from one."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moejax.serving.device import Device
from moejax.serving.hand_off import Arrays


class PagedDevice(Device):
    """A Device that is a `hand_off.PageStore`. Pages are copied in few sizes, each of which is compiled."""

    def page_layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        shapes = jax.eval_shape(_taken, self._served.cache, jax.ShapeDtypeStruct((1,), np.int32))
        return {name: (x.shape[1:], x.dtype) for name, x in _named(shapes)}

    def read_pages(self, pages: Sequence[int]) -> Arrays:
        taken = _taken(self._served.cache, _padded(pages, fill=0))
        return {name: np.asarray(x)[: len(pages)] for name, x in _named(taken)}

    def write_pages(self, pages: Sequence[int], arrays: Arrays) -> None:
        if not len(pages):
            return
        page_N = _padded(pages, fill=self.sizes.num_pages)  # which does not exist: dropped
        fill = lambda x: np.pad(x, [(0, len(page_N) - len(pages))] + [(0, 0)] * (x.ndim - 1))
        _, tree = jax.tree.flatten(self._served.cache)
        given = jax.tree.unflatten(tree, [fill(arrays[name]) for name, _ in _named(self._served.cache)])
        self._served = self._served.replace(cache=_put(self._served.cache, page_N, given))


@jax.jit
def _taken(cache, page_N):
    """[N, layers, ...] of every leaf."""
    return jax.tree.map(lambda x_LP: jnp.moveaxis(x_LP[:, page_N], 1, 0), cache)


@functools.partial(jax.jit, donate_argnums=0)
def _put(cache, page_N, given):
    put = lambda x_LP, new_NL: x_LP.at[:, page_N].set(jnp.moveaxis(new_NL, 0, 1), mode="drop")
    return jax.tree.map(put, cache, given)


def _padded(pages: Sequence[int], fill: int) -> np.ndarray:
    """The pages, and `fill` up to the next power of two."""
    padded = np.full(1 << max(len(pages) - 1, 0).bit_length(), fill, np.int32)
    padded[: len(pages)] = pages
    return padded


def _named(tree):
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
