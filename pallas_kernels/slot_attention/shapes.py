"""The sizes at which slot attention is tested and measured."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SlotShape:
    """N rows of H heads, A wide, over Q slots of J pages of S positions with G key/value heads."""

    name: str
    N: int
    H: int
    G: int
    A: int
    Q: int
    J: int
    S: int
    window: int | None = None

    @property
    def P(self) -> int:
        """Pages in all: every slot can be full."""
        return self.Q * self.J

    @property
    def dims(self) -> tuple[tuple[int, ...], ...]:
        """Of the operands, in their order."""
        pages = (self.P, self.G, self.S, self.A)
        return (self.N, self.H, self.A), pages, pages, (self.N,), (self.N,), (self.Q, self.J)


# Grouped, one head per key head in odd widths with a window, one key head for all.
TINY = (
    SlotShape("grouped", N=24, H=4, G=2, A=16, Q=5, J=6, S=8),
    SlotShape("window", N=24, H=3, G=3, A=24, Q=5, J=6, S=8, window=9),
    SlotShape("multi_query", N=24, H=5, G=1, A=8, Q=5, J=3, S=16),
)

# Attention of published models: 32 requests that decode and a chunk of 480 rows, up to 8,192 positions each.
PUBLISHED = (
    SlotShape("mixtral_8x7b_page_16", N=512, H=32, G=8, A=128, Q=64, J=512, S=16),
    SlotShape("mixtral_8x7b_page_64", N=512, H=32, G=8, A=128, Q=64, J=128, S=64),
    SlotShape("qwen3_30b_a3b", N=512, H=32, G=4, A=128, Q=64, J=128, S=64),
    SlotShape("gpt_oss_120b", N=512, H=64, G=8, A=64, Q=64, J=128, S=64, window=128),
    SlotShape("smollm2_135m", N=64, H=9, G=3, A=64, Q=64, J=32, S=16),
)
