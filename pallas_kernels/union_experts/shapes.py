"""The sizes at which the union of experts is tested and measured."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class UnionShape:
    """N tokens, D wide, and E experts, F wide, with or without a gate."""

    name: str
    N: int
    D: int
    F: int
    E: int
    gated: bool = False

    @property
    def expert_numbers(self) -> int:
        """Weights of one expert."""
        return (3 if self.gated else 2) * self.D * self.F

    @property
    def dims(self) -> tuple[tuple[int, ...], ...]:
        """Of x, weight, up, down and perhaps gate."""
        wide = (self.E, self.D, self.F)
        return (self.N, self.D), (self.N, self.E), wide, (self.E, self.F, self.D), *([wide] * self.gated)


TINY = (
    UnionShape("plain", N=4, D=24, F=16, E=8),
    UnionShape("gated", N=3, D=40, F=24, E=6, gated=True),
    UnionShape("one", N=1, D=16, F=8, E=1),
)

# BlockFFN's sizes (a draft of 32 tokens) and experts with a gate of other published models.
PUBLISHED = (
    UnionShape("blockffn_100m", N=32, D=768, F=64, E=48),
    UnionShape("blockffn_1200m", N=32, D=1792, F=128, E=56),
    UnionShape("blockffn_2800m", N=32, D=2048, F=128, E=128),
    UnionShape("mixtral_8x7b", N=4, D=4096, F=14336, E=8, gated=True),
    UnionShape("qwen3_30b_a3b", N=8, D=2048, F=768, E=128, gated=True),
)
