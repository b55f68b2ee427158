"""The sizes at which products of 8-bit integers are tested and measured."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Int8Shape:
    """out[M, N] = lhs[M, K] @ rhs[K, N]."""

    name: str
    M: int
    K: int
    N: int


# Off every tile, one row, on every tile.
TINY = (
    Int8Shape("odd", M=37, K=19, N=45),
    Int8Shape("one_row", M=1, K=300, N=5),
    Int8Shape("aligned", M=64, K=256, N=128),
)

# Dense and shared-expert products of published models, while decoding 96 rows and in prefill.
PUBLISHED = (
    Int8Shape("deepseek_v3_decode", M=96, K=7168, N=4096),
    Int8Shape("deepseek_v3_prefill", M=4096, K=7168, N=4096),
    Int8Shape("mixtral_8x7b_prefill", M=4096, K=4096, N=14336),
)
