"""What reaches over all layers: parts that are stored once, and what a token carries from layer to layer."""

import jax.numpy as jnp

from moejax import sharding
from moejax import specs as sp
from moejax.config import require


def parts(m) -> dict:
    """By name, the ffn that speaks for each part that layers share."""
    found = {}
    for ffn in (block.ffn for group in m.groups for block in group.blocks if block.ffn.shared):
        first = found.setdefault(ffn.shared, ffn)
        require(
            first.shared_specs(m) == ffn.shared_specs(m),
            f"two layers share the part {ffn.shared!r} but declare it differently: "
            f"{first.shared_specs(m)} and {ffn.shared_specs(m)}; give their ffns the same settings",
        )
    return found


def specs(m):
    """Parameters of all parts, at params["shared"]; nothing at all where no part has any."""
    tree = {name: ffn.shared_specs(m) for name, ffn in parts(m).items()}
    return {"shared": tree} if tree else {}


def cache_specs(m, num_slots: int, length: int):
    """What decoding keeps for each part."""
    return {name: ffn.shared_cache(m, num_slots, length) for name, ffn in parts(m).items()}


def prepare(params, m, batch, cache):
    """({name: what every layer finds of it}, new cache), once per forward pass."""
    prepared, new_cache = {}, {}
    for name, ffn in parts(m).items():
        own_cache = None if cache is None else cache[name]
        prepared[name], new_cache[name] = ffn.prepare(params["shared"][name], m, batch, own_cache)
    return prepared, None if cache is None else new_cache


def carry(m, batch):
    """What every token carries into the first layer."""
    declared = {}
    for ffn in (block.ffn for group in m.groups for block in group.blocks):
        for name, spec in ffn.carry_specs(m).items():
            first = declared.setdefault(name, spec)
            require(
                first == spec,
                f"two layers carry {name!r} but declare it differently: {first} and {spec}; "
                "give their ffns the same settings",
            )

    def start(spec):
        where = sharding.out("BT" + "." * len(spec.shape))
        zero = jnp.zeros((*batch.token_BT.shape, *spec.shape), spec.dtype, out_sharding=where)
        return zero + jnp.asarray(spec.init.value, spec.dtype)

    return sp.tree_map(start, declared)
