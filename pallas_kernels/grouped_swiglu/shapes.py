"""The sizes at which gated products are tested and measured."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SwigluShape:
    """h[R, F] of R = N K rows of N tokens of width D, in G groups."""

    name: str
    N: int
    K: int
    D: int
    F: int
    G: int


# Off every tile, one slot each, on every tile.
TINY = (
    SwigluShape("odd", N=25, K=3, D=5, F=7, G=8),
    SwigluShape("one_slot", N=40, K=1, D=8, F=4, G=3),
    SwigluShape("aligned", N=64, K=2, D=16, F=32, G=4),
)

# configs/small.py, batch 8 x 256 tokens; 2048 tokens to eight of 64 experts.
SMALL = (
    SwigluShape("small", N=2048, K=2, D=512, F=1024, G=8),
    SwigluShape("many_experts", N=2048, K=8, D=256, F=256, G=64),
)

# Published models, tokens of one training device.
PUBLISHED = (
    SwigluShape("mixtral_8x7b", N=4096, K=2, D=4096, F=14336, G=8),
    SwigluShape("qwen3_30b_a3b", N=16384, K=8, D=2048, F=768, G=128),
    SwigluShape("olmoe_1b_7b", N=8192, K=8, D=2048, F=1024, G=64),
    SwigluShape("deepseek_v3", N=16384, K=8, D=7168, F=2048, G=256),
)
