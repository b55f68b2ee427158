"""One transformer block: norm, attend, add; norm, ffn, add; and perhaps norm, second ffn, add."""

import jax.numpy as jnp

from moejax.config import require
from moejax.ops import norm
from moejax.seams import BlockOut, RouteIn


def specs(m, block):
    """Parameters of one block."""
    tree = {
        "pre": norm.specs(m),
        "attn": block.attn.specs(m),
        "post": norm.specs(m),
        "ffn": block.ffn.specs(m),
    }
    if block.after is not None:
        tree |= {"pre_after": norm.specs(m), "after": block.after.specs(m)}
    if block.post_norms:
        tree |= {f"{branch}_out": norm.specs(m) for branch in ("attn", "ffn", "after") if branch in tree}
    return tree


def apply(p, h_BTD, memory, ctx, m, block):
    """(h_BTD, memory, BlockOut) after one block; `ctx.batch.valid_BT` says which tokens are there at all."""
    pre_BTD = norm.apply(p["pre"], h_BTD, m)
    o_BTD, mixing, memory = block.attn.apply(p["attn"], pre_BTD, ctx.batch, memory)
    y_BTD = h_BTD + _branch(p.get("attn_out"), o_BTD, m, block)
    x_BTD = norm.apply(p["post"], y_BTD, m)
    route_in = RouteIn(h_BTD, pre_BTD, x_BTD, mixing, ctx.batch, ctx.side, memory, ctx.shared, ctx.key)
    f_BTD, routing, memory = block.ffn.apply(p["ffn"], route_in)
    h_BTD = y_BTD + _branch(p.get("ffn_out"), f_BTD, m, block)
    if block.after is not None:
        x_BTD = norm.apply(p["pre_after"], h_BTD, m)
        f_BTD, chosen, memory = block.after.apply(p["after"], route_in.replace(x_BTD=x_BTD, memory=memory))
        require(chosen is None, f"after={type(block.after).__name__} routes; put it in the place of ffn")
        h_BTD += _branch(p.get("after_out"), f_BTD, m, block)
    return h_BTD, memory, BlockOut(h_BTD, mixing, routing)


def _branch(norm_p, f_BTD, m, block):
    """What attention or an ffn adds to the residual stream."""
    if block.post_norms:
        f_BTD = norm.apply(norm_p, f_BTD, m)
    if block.residual_scale == 1.0:
        return f_BTD
    precise = jnp.promote_types(f_BTD.dtype, jnp.float32)
    return (f_BTD.astype(precise) * block.residual_scale).astype(f_BTD.dtype)
