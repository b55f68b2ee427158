"""The sizes at which grouped products are tested and measured, and how rows spread over groups."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class GroupedShape:
    """out[M, N] = lhs[M, K] @ rhs[G, K, N], G groups of rows."""

    name: str
    M: int
    K: int
    N: int
    G: int


# Off every tile, fewer rows than groups, one group, on every tile.
TINY = (
    GroupedShape("odd", M=75, K=5, N=7, G=8),
    GroupedShape("few_rows", M=3, K=4, N=6, G=8),
    GroupedShape("one_group", M=40, K=8, N=4, G=1),
    GroupedShape("aligned", M=256, K=16, N=32, G=4),
)

# configs/small.py, batch 8 x 256 tokens, two experts each.
SMALL = (
    GroupedShape("small_up", M=4096, K=512, N=1024, G=8),
    GroupedShape("small_down", M=4096, K=1024, N=512, G=8),
)

# 2048 tokens to eight of 64 experts: little work per expert.
MANY_EXPERTS = (GroupedShape("many_experts", M=16384, K=256, N=256, G=64),)

# The up projection of published models; rows = tokens x experts per token of one training device.
PUBLISHED = (
    GroupedShape("mixtral_8x7b", M=8192, K=4096, N=14336, G=8),
    GroupedShape("qwen3_30b_a3b", M=131072, K=2048, N=768, G=128),
    GroupedShape("olmoe_1b_7b", M=65536, K=2048, N=1024, G=64),
    GroupedShape("deepseek_v3", M=131072, K=7168, N=2048, G=256),
    GroupedShape("deepseek_v3_half", M=131072, K=7168, N=1024, G=256),  # expert width over two devices
)


def uniform(M: int, G: int) -> np.ndarray:
    """Group sizes that differ by one row at most."""
    return np.diff(np.linspace(0, M, G + 1).astype(np.int32))


def zipf(M: int, G: int) -> np.ndarray:
    """Group sizes in proportion to 1, 1/2, 1/3, ..., in a fixed random order."""
    weight_G = 1 / np.arange(1, G + 1)
    size_G = np.floor(M * weight_G / weight_G.sum()).astype(np.int32)
    size_G[0] += M - size_G.sum()
    return np.random.default_rng(0).permutation(size_G)


def one_hot(M: int, G: int) -> np.ndarray:
    """All rows in one group in the middle."""
    return np.where(np.arange(G) == G // 2, M, 0).astype(np.int32)


DISTRIBUTIONS = {"uniform": uniform, "zipf": zipf, "one_hot": one_hot}
