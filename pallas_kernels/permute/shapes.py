"""The sizes at which rows are permuted in tests and benchmarks."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PermuteShape:
    """N tokens of width D, each to K of E experts."""

    name: str
    N: int
    K: int
    D: int
    E: int


# Off every tile, one slot each, fewer tokens than slots.
TINY = (
    PermuteShape("odd", N=11, K=3, D=5, E=7),
    PermuteShape("one_slot", N=18, K=1, D=130, E=4),
    PermuteShape("few_tokens", N=2, K=6, D=8, E=16),
)

# configs/small.py, batch 8 x 256 tokens; 2048 tokens to eight of 64 experts.
SMALL = (
    PermuteShape("small", N=2048, K=2, D=512, E=8),
    PermuteShape("many_experts", N=2048, K=8, D=256, E=64),
)

# Published models, tokens of one training device.
PUBLISHED = (
    PermuteShape("mixtral_8x7b", N=4096, K=2, D=4096, E=8),
    PermuteShape("qwen3_30b_a3b", N=16384, K=8, D=2048, E=128),
    PermuteShape("olmoe_1b_7b", N=8192, K=8, D=2048, E=64),
    PermuteShape("deepseek_v3", N=16384, K=8, D=7168, E=256),
)
