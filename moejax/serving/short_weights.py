"""The matrices of a model in 8 or 16 bits; products round rows to as many bits.

8 bits with a scale per channel: Serving Large Language Models on Huawei CloudMatrix384 (Zuo et al., 2025,
arXiv 2506.12708), section on INT8. Norms, biases and routers stay as they are, as do matrices that are used
in two ways (`kv_up` of latent attention), and what passes from layer to layer.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from moejax import specs as sp
from moejax import weights
from moejax.config import require
from moejax.model import forward as decoder
from moejax.quantised import Bfloat16, is_quantised
from moejax.serving.model import Model

# Matrices of attention and ffn, by name: over how many dims they sum, the first ones after layer and expert.
MATRICES = dict.fromkeys(("q", "k", "v", "q_down", "q_up", "kv_down", "gate", "linear_gate", "up", "down"), 1)
MATRICES["o"] = 2
TABLES = ("embed", "unembed")  # summed over their last dim


def in_int8(model: Model, tables: bool = True) -> Model:
    """`model` with every matrix as `Int8`: a quarter of the memory of float32. It can be run, not trained.

    Args:
      tables: those of embedding and unembedding too.

    Raises:
      UsageError: there is a mesh, weights are small integers already, or no parameter is a matrix.
    """
    return _shortened(model, 8, weights.to_int8, tables)


def in_bfloat16(model: Model) -> Model:
    """`model` with every matrix as `Bfloat16`: half the memory of float32. It can be run, not trained.

    Activations keep their type, which is what sets this apart from a model of that dtype.

    Raises:
      UsageError: as `in_int8`.
    """
    return _shortened(model, 16, lambda w, dims: Bfloat16(w.astype(jnp.bfloat16)))


def _shortened(model: Model, bits: int, convert: Callable, tables: bool = True) -> Model:
    alone = jax.sharding.get_mesh().empty
    require(alone, f"weights of {bits} bits are for one device; leave jax.set_mesh first")
    kept = [leaf for leaf in jax.tree.leaves(model.params, is_leaf=is_quantised) if is_quantised(leaf)]
    require(not kept, f"{len(kept)} weights are short already; load the model as floats for {bits} bits")
    declared = dict(sp.leaves(decoder.specs(model.cfg)))
    summed = {path: _summed(path, spec, tables) for path, spec in declared.items()}
    require(
        any(summed.values()),
        f"none of {', '.join(declared)} is a matrix of attention or ffn that {bits} bits are known for; "
        f"those are {', '.join((*MATRICES, *TABLES))}",
    )

    def shorten(path, leaf):
        dims = summed[sp.path_name(path)]
        return convert(leaf, dims) if dims else leaf

    return dataclasses.replace(model, params=jax.tree_util.tree_map_with_path(shorten, model.params))


def _summed(path: str, spec: sp.Spec, tables: bool) -> tuple[int, ...]:
    """The dims over which products sum, counted from the last; none for what stays floats."""
    *places, name = path.split("/")
    if name in TABLES and not places:
        return (-1,) if tables else ()
    if name not in MATRICES or not {"attn", "ffn", "after"} & set(places) or "score" in places:
        return ()
    own = sum(dim not in sp.STACKED for dim in spec.dims)
    return tuple(range(-own, MATRICES[name] - own))
