"""The sizes at which segment attention is tested and measured, and how rows are cut into segments."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """B rows of T positions, H query heads over G key/value heads; A wide, values C wide (None: A)."""

    name: str
    B: int
    T: int
    H: int
    G: int
    A: int
    C: int | None = None
    window: int | None = None

    @property
    def value_width(self) -> int:
        return self.A if self.C is None else self.C


# Off every block; one position; values of another width; a window; as many key/value heads as query heads.
TINY = (
    AttentionShape("odd", B=2, T=37, H=4, G=2, A=5),
    AttentionShape("one_position", B=3, T=1, H=2, G=1, A=4),
    AttentionShape("other_width", B=1, T=70, H=8, G=1, A=8, C=6),
    AttentionShape("window", B=2, T=90, H=2, G=2, A=4, window=7),
)

# configs/small.py
SMALL = (AttentionShape("small", B=8, T=256, H=8, G=4, A=64),)

PUBLISHED = (
    AttentionShape("mixtral_8x7b", B=2, T=4096, H=32, G=8, A=128),
    AttentionShape("qwen3_30b_a3b", B=2, T=4096, H=32, G=4, A=128),
    AttentionShape("olmoe_1b_7b", B=2, T=4096, H=16, G=16, A=128),
    AttentionShape("gpt_oss_window", B=2, T=4096, H=64, G=8, A=64, window=128),
    AttentionShape("gpt_oss_full", B=2, T=4096, H=64, G=8, A=64),
)


def one(T: int) -> np.ndarray:
    """One segment."""
    return np.ones(T, np.int32)


def packed(T: int, mean: int, seed: int = 0) -> np.ndarray:
    """Segments of about `mean` positions, and padding behind them."""
    rng = np.random.default_rng(seed)
    end = T - int(rng.integers(0, max(mean // 2, 1) + 1))
    at_T = np.arange(T)
    begins_T = rng.random(T) < 1 / mean
    return np.where(at_T < end, 1 + np.cumsum(begins_T), 0).astype(np.int32)


def padding(T: int) -> np.ndarray:
    """No segment at all."""
    return np.zeros(T, np.int32)
