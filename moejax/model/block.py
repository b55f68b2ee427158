"""One transformer block: norm, attend, add; norm, ffn, add."""

from moejax.ops import norm
from moejax.seams import BlockOut, RouteIn


def specs(m, block):
    """Parameters of one block."""
    return {
        "pre": norm.specs(m),
        "attn": block.attn.specs(m),
        "post": norm.specs(m),
        "ffn": block.ffn.specs(m),
    }


def apply(p, h_BTD, memory, ctx, m, block):
    """(h_BTD, memory, BlockOut) after one block; `ctx.batch.valid_BT` says which tokens are there at all."""
    pre_BTD = norm.apply(p["pre"], h_BTD, m)
    o_BTD, mixing, memory = block.attn.apply(p["attn"], pre_BTD, ctx.batch, memory)
    y_BTD = h_BTD + o_BTD
    x_BTD = norm.apply(p["post"], y_BTD, m)
    route_in = RouteIn(h_BTD, pre_BTD, x_BTD, mixing, ctx.batch, ctx.side, memory, ctx.shared, ctx.key)
    f_BTD, routing, memory = block.ffn.apply(p["ffn"], route_in)
    h_BTD = y_BTD + f_BTD
    return h_BTD, memory, BlockOut(h_BTD, mixing, routing)
