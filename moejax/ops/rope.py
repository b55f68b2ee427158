"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), its frequencies also scaled for long texts.

A head's pairs turn with the position, pair a of A/2 by pos * theta^(-2a/A) radians. A scaling replaces these
frequencies, and may multiply what is turned by a gain, which makes the softmax sharper.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config import require


class Scaling(Protocol):
    """Other frequencies than theta's own.

    `length` is how many positions a text can have where the program runs: those of a row, or of a slot of the
    cache. It is known when a program is traced, so one text keeps its frequencies while it is written.
    """

    def frequencies(self, theta: float, width: int, length: int) -> np.ndarray:
        """f64[width / 2], radians per position."""

    def gain(self, length: int) -> float:
        """What multiplies sine and cosine."""


@dataclasses.dataclass(frozen=True)
class Rotation:
    """How positions turn heads: what all layers of one kind have in common, so a pass computes it once."""

    theta: float  # pair a turns by theta^(-2a/A) radians per position, unless the scaling says otherwise
    width: int  # A, even
    scaling: Scaling | None = None

    def sin_cos(self, pos_BT, length: int | None = None, dtype=jnp.float32):
        """(sine, cosine), each [B, T, 1, A/2] in at least f32.

        Args:
          length: see `Scaling`; default T.
          dtype: of the heads that will be turned.
        """
        half = self.width // 2
        dtype = jnp.promote_types(dtype, jnp.float32)
        length = pos_BT.shape[1] if length is None else length
        if self.scaling is None:
            turn_A = self.theta ** (-jnp.arange(half, dtype=dtype) / half)
        else:
            turn_A = jnp.asarray(self.scaling.frequencies(self.theta, self.width, length), dtype)
        angle_BTHA = (pos_BT[..., None].astype(dtype) * turn_A[None, None])[:, :, None]
        sin_BTHA, cos_BTHA = jax.lax.platform_dependent(angle_BTHA, cpu=_apart, default=_together)
        gain = 1.0 if self.scaling is None else self.scaling.gain(length)
        return (sin_BTHA, cos_BTHA) if gain == 1.0 else (sin_BTHA * gain, cos_BTHA * gain)

    def of(self, batch, length: int | None = None, dtype=jnp.float32):
        """`sin_cos` of a batch, taken from it if a pass over many layers has put it there."""
        found = batch.turns.get(repr(self))
        return self.sin_cos(batch.pos_BT, length, dtype) if found is None else found


def _together(angle):
    return jnp.sin(angle), jnp.cos(angle)


def _apart(angle):
    """As `_together`, kept in memory: XLA's CPU would compute both again wherever they multiply a head."""
    # Nothing is fused across the border of a loop; an optimization_barrier is gone before fusion.
    both = jax.lax.map(lambda is_sin: jax.lax.cond(is_sin, jnp.sin, jnp.cos, angle), jnp.array([True, False]))
    return both[0], both[1]


def rotate(x_BTHA, turn):
    """Turn the pair (a, a + A/2) of every head by its angle, in at least f32.

    Args:
      x_BTHA: heads of even width.
      turn: sine and cosine of the angles, from `Rotation`.
    """
    sin_BTHA, cos_BTHA = turn
    low, high = jnp.split(x_BTHA.astype(sin_BTHA.dtype), 2, axis=-1)
    turned = jnp.concatenate([low * cos_BTHA - high * sin_BTHA, high * cos_BTHA + low * sin_BTHA], axis=-1)
    return turned.astype(x_BTHA.dtype)


def rotate_pairs(x_BTHA, turn):
    """As `rotate`, but the pairs lie side by side: (2a, 2a + 1)."""
    sin_BTHA, cos_BTHA = turn
    x = x_BTHA.astype(sin_BTHA.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = jnp.stack([even * cos_BTHA - odd * sin_BTHA, odd * cos_BTHA + even * sin_BTHA], axis=-1)
    return jnp.reshape(turned, x_BTHA.shape).astype(x_BTHA.dtype)


def frequencies(theta: float, width: int) -> np.ndarray:
    """theta^(-2a/A) for every pair a of a head of width A, in f64."""
    return theta ** (-np.arange(0, width, 2) / width)


def long_text_gain(factor: float, slope: float = 1.0) -> float:
    """YaRN's gain for texts `factor` times as long (eq. 22); DeepSeek's `mscale` is another slope."""
    return 1.0 if factor <= 1 else 0.1 * slope * math.log(factor) + 1.0


@dataclasses.dataclass(frozen=True)
class Interpolation:
    """Positions divided by a factor (Chen et al. 2023, Position Interpolation, arXiv 2306.15595)."""

    factor: float  # s; texts may be so many times as long

    def __post_init__(self):
        require(self.factor > 0, f"rope_scaling.factor={self.factor} must be positive")

    def frequencies(self, theta, width, length):
        return frequencies(theta, width) / self.factor

    def gain(self, length):
        return 1.0


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Slow pairs interpolated, fast ones left alone (Grattafiori et al. 2024, Llama 3, arXiv 2407.21783).

    A pair that turns more than `fast` times within `original` positions stays; one that turns less than
    `slow` times is divided by `factor`; between them the two are mixed in proportion.
    """

    factor: float
    original: int  # positions of the texts that the model was first trained on
    slow: float = 1.0  # turns
    fast: float = 4.0  # turns

    def __post_init__(self):
        require(self.factor > 0, f"rope_scaling.factor={self.factor} must be positive")
        require(
            0 < self.slow < self.fast,
            f"rope_scaling.slow={self.slow} must lie between 0 and rope_scaling.fast={self.fast}",
        )

    def frequencies(self, theta, width, length):
        plain_A = frequencies(theta, width)
        turns_A = self.original * plain_A / (2 * np.pi)
        kept_A = np.clip((turns_A - self.slow) / (self.fast - self.slow), 0, 1)
        return kept_A * plain_A + (1 - kept_A) * plain_A / self.factor

    def gain(self, length):
        return 1.0


@dataclasses.dataclass(frozen=True)
class Yarn:
    """Slow pairs interpolated, fast ones left alone, and a gain (Peng et al. 2023, YaRN, arXiv 2309.00071).

    The ramp between them is linear in the pair's index, from the pair that turns `fast` times within
    `original` positions to the one that turns `slow` times.
    """

    factor: float  # s
    original: int  # L; positions of the texts that the model was first trained on
    fast: float = 32.0  # beta; turns
    slow: float = 1.0  # alpha; turns
    truncate: bool = True  # the ramp begins and ends at whole pairs
    attention_factor: float | None = None  # the gain; None = 0.1 ln(factor) + 1, eq. 22

    def __post_init__(self):
        require(self.factor > 0, f"rope_scaling.factor={self.factor} must be positive")
        require(
            0 < self.slow <= self.fast,
            f"rope_scaling.slow={self.slow} must lie between 0 and rope_scaling.fast={self.fast}",
        )

    def frequencies(self, theta, width, length):
        plain_A = frequencies(theta, width)
        # theta^(-2a/A) * L = 2 pi turns, solved for a
        pair = lambda turns: width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))
        first, last = pair(self.fast), pair(self.slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        slow_A = np.clip((np.arange(width // 2) - first) / (last - first or 0.001), 0, 1)
        return (1 - slow_A) * plain_A + slow_A * plain_A / self.factor

    def gain(self, length):
        return long_text_gain(self.factor) if self.attention_factor is None else self.attention_factor


@dataclasses.dataclass(frozen=True)
class LongRope:
    """A divisor for every pair, found by search (Ding et al. 2024, LongRoPE, arXiv 2402.13753).

    Two sets: one where texts are no longer than those of the first training, one where they can be.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int  # positions of the texts that the model was first trained on
    short_gain: float = 1.0
    long_gain: float = 1.0

    def __post_init__(self):
        short, long = len(self.short), len(self.long)
        require(
            short == long,
            f"rope_scaling.short has {short} divisors and rope_scaling.long {long}; expected one per pair",
        )

    def frequencies(self, theta, width, length):
        divisors = self.long if length > self.original else self.short
        require(
            len(divisors) == width // 2,
            f"rope_scaling has {len(divisors)} divisors, but heads of width {width} have {width // 2} pairs",
        )
        return frequencies(theta, width) / np.asarray(divisors, np.float64)

    def gain(self, length):
        return self.long_gain if length > self.original else self.short_gain
