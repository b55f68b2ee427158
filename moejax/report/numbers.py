"""Numbers as people read them, and round places to put the ticks of an axis."""

import math

import numpy as np


def plain(value: float, digits: int = 3) -> str:
    """About `digits` significant digits: 1,234,567 -> 1.23 M, 0.00031 -> 3.1e-4, 12.0 -> 12, NaN -> -."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if abs(value) >= size:
            return plain(value / size, digits) + unit
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    text = f"{value:,.{max(digits - 1 - _exponent(value), 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    raw = (high - low) / max(about, 1)
    base = 10.0 ** _exponent(raw)
    step = base * min((1, 2, 5, 10), key=lambda m: abs(math.log(m * base / raw)))
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], with their 2- and 5-fold where that gives too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 3), (1, 2, 5)):
        ticks = [
            m * 10.0**d for d in decades for m in multiples if low <= m * 10.0**d * 1.0001 <= high * 1.001
        ]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 6)]
    return ticks or [low, high]


def thin(x_S: np.ndarray, y_S: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points: means of equal runs of neighbours; y may have trailing dims."""
    if len(x_S) <= most:
        return x_S, y_S
    parts = np.array_split(np.arange(len(x_S)), most)
    return np.array([x_S[p].mean() for p in parts]), np.array([y_S[p].mean(0) for p in parts])


def smooth(y_S: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean over `window` points; narrower near the ends, so that it begins and ends on y."""
    index_S = np.arange(len(y_S))
    half_S = np.minimum(window // 2, np.minimum(index_S, len(y_S) - 1 - index_S))
    total = np.concatenate([[0.0], np.cumsum(y_S)])
    return (total[index_S + half_S + 1] - total[index_S - half_S]) / (2 * half_S + 1)
