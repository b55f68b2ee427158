"""Masks over weights, by path: which there are, the strongest weights of a whole model, what is left where.

A model may have more weights than an int32 counts, so counts are pairs of int32: (multiples of 4096, rest).
"""

import fnmatch

import jax
import jax.numpy as jnp
import numpy as np

from moejax import specs as sp

_BITS = 12  # of the rest in a count


def prunable(specs, dense: tuple[str, ...]) -> dict[str, sp.Spec]:
    """The matrices of a model by path, without those whose path matches a glob of `dense`."""
    return {
        path: spec
        for path, spec in sp.leaves(specs)
        if sum(dim not in sp.STACKED for dim in spec.dims) >= 2
        and not any(fnmatch.fnmatchcase(path, glob) for glob in dense)
    }


def select(params, paths) -> dict[str, jax.Array]:
    """The leaves at `paths`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {sp.path_name(path): leaf for path, leaf in flat if sp.path_name(path) in paths}


def where(masks: dict[str, jax.Array], kept, masked=None):
    """A tree like `kept` that has `masked` (None = 0) in the place of what a mask leaves out."""

    def choose(path, new, other):
        mask = masks.get(sp.path_name(path))
        return new if mask is None else jnp.where(mask, new, other.astype(new.dtype))

    if masked is None:
        masked = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), kept)
    return jax.tree_util.tree_map_with_path(choose, kept, masked)


def count(number: int) -> np.ndarray:
    """`number` as a count, i32[2]."""
    return np.array(divmod(number, 1 << _BITS), np.int32)


def as_float(pair) -> jax.Array:
    """A count, rounded to a float32."""
    return pair[0] * float(1 << _BITS) + pair[1]


def num_true(flags: dict[str, jax.Array]) -> jax.Array:
    """How many are set in all of `flags`, a count. Split arrays are summed where they are."""
    pairs = [_num_true(flag) for flag in flags.values()]
    return jnp.stack(_carry(sum(high for high, _ in pairs), sum(low for _, low in pairs)))


def _num_true(flag):
    high, low = _carry(0, jnp.sum(flag, -1, dtype=jnp.int32))
    for _ in range(low.ndim):  # dim by dim, as a sum of many rests may not exceed an int32
        high, low = _carry(jnp.sum(high, -1, dtype=jnp.int32), jnp.sum(low, -1, dtype=jnp.int32))
    return high, low


def _carry(high, low):
    return high + (low >> _BITS), low & ((1 << _BITS) - 1)


def global_magnitude(
    weights: dict[str, jax.Array], masks: dict[str, jax.Array], kept
) -> dict[str, jax.Array]:
    """Masks that leave the `kept` largest of all weights that `masks` leave; equals of the smallest stay too.

    The threshold is found bit by bit from the highest: floats that are not negative are ordered as the
    integers of their bits are. That takes 31 passes that count; nothing is sorted, indexed or gathered.

    Args:
      weights, masks: by path; ranked in float32.
      kept: a count.
    """
    absolute = {path: jnp.abs(w.astype(jnp.float32)) * masks[path] for path, w in weights.items()}
    score = {path: jax.lax.bitcast_convert_type(a, jnp.int32) for path, a in absolute.items()}

    def at_least(threshold):
        return {path: s >= threshold for path, s in score.items()}

    def raise_threshold(i, threshold):
        higher = threshold | (1 << (30 - i))
        (high, low), (kept_high, kept_low) = num_true(at_least(higher)), kept
        enough = (high > kept_high) | ((high == kept_high) & (low >= kept_low))
        return jnp.where(enough, higher, threshold)

    threshold = jax.lax.fori_loop(0, 31, raise_threshold, jnp.int32(0))
    return {path: flag & masks[path] for path, flag in at_least(threshold).items()}


def density(masks: dict[str, jax.Array], prunable: dict[str, sp.Spec]) -> dict[str, jax.Array]:
    """By path, what share of each matrix is left: [layer, expert], as far as the parameter has these dims."""

    def share(path):
        own = [i for i, dim in enumerate(prunable[path].dims) if dim not in sp.STACKED]
        return jnp.mean(masks[path], own, dtype=jnp.float32)

    return {path: share(path) for path in masks}
