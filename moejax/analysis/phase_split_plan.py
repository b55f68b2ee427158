"""Which share of one device should read prompts while the rest writes text: a model of both, and the choice.

Nexus: Proactive Intra-GPU Disaggregation of Prefill and Decode in LLM Serving (Shi et al. 2025, arXiv
2507.06608). A phase takes the sum over its operators of max(arithmetic, memory). Arithmetic takes
flops / (peak * used), where more than `saturation` of the device helps only `decay` as much. Attention of
decoding shares the memory with what prefill does meanwhile, in proportion to their bytes:

    B_d = B (P m_d / (m_d + m_p1) + (1 - P) m_d / (m_d + m_p2)),  P = share of prefill's time in attention

While the cache has room prefill gets as much as lets decoding take `beta` times its least time; when it has
none, decoding as much as lets prefill take `alpha` times its own. Shares are in percent.

Differs from the paper: the form of the diminishing return and of B_d are inferred from its prose. Where both
slacks together ask for more than the device, which the paper does not treat, each phase gets its part of it.
The time of the whole device is modelled with the same contention as the times that are held against it.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from moejax.analysis.pool_latency import touched
from moejax.config import require

Time = Callable[[int], float]  # seconds, by percent of the device


@dataclasses.dataclass(frozen=True)
class Device:
    """What is shared."""

    flops: float  # per second
    bandwidth: float  # bytes/s
    saturation: float = 1.0  # share of the device from which on more of it helps less,
    decay: float = 0.0  # namely so much; 1 = as much as before, 0 = nothing

    def __post_init__(self):
        require(0 < self.saturation <= 1, f"saturation={self.saturation} must lie above 0 and at most at 1")
        require(0 <= self.decay <= 1, f"decay={self.decay} must lie between 0 and 1")

    def used(self, share: float) -> float:
        """What a share of the device is worth."""
        return min(share, self.saturation) + self.decay * max(share - self.saturation, 0.0)


def fit_saturation(shares, seconds) -> tuple[float, float]:
    """Saturation and decay of a phase that was timed on several shares of a device.

    Least squares of the relative error: speed is linear up to the saturation, and linear from there on.

    Args:
      shares: above 0, at most 1; at least three.
      seconds: of the same work on each.
    """
    shares, seconds = np.asarray(shares, np.float64), np.asarray(seconds, np.float64)
    require(len(np.unique(shares)) >= 3, f"shares={shares.tolist()} show no bend; time at least three")
    best, least = (1.0, 0.0), np.inf
    for saturation in np.arange(1, 101) / 100:
        columns = np.stack([np.minimum(shares, saturation), np.maximum(shares - saturation, 0)], -1)
        columns *= seconds[:, None]
        slope = np.linalg.lstsq(columns, np.ones(len(shares)), rcond=None)[0]
        error = np.sum((columns @ slope - 1) ** 2)
        if slope[0] > 0 and 0 <= slope[1] <= slope[0] * (1 + 1e-9) and error < least * (1 - 1e-9):
            best, least = (float(saturation), float(min(slope[1] / slope[0], 1.0))), error
    return best


@dataclasses.dataclass(frozen=True)
class Operator:
    """One part of a step."""

    flops: float
    bytes: float
    attends: bool = False  # it is attention, which reads the cache

    def time(self, share: float, device: Device, bandwidth: float) -> float:
        return max(self.flops / (device.flops * device.used(share)), self.bytes / bandwidth)


def prefill_time(operators: Sequence[Operator], share: float, device: Device) -> float:
    """Seconds on a share of the device, with its memory as if nobody else ran: so no circle arises."""
    return sum(operator.time(share, device, device.bandwidth) for operator in operators)


def decode_time(
    operators: Sequence[Operator], share: float, device: Device, prefill: Sequence[Operator] = ()
) -> float:
    """Seconds on a share of the device while prefill runs on the rest."""
    rest = max(1 - share, 0.01)
    attention = [operator for operator in prefill if operator.attends]
    whole = prefill_time(prefill, rest, device)
    bandwidth = contended_bandwidth(
        device.bandwidth,
        decode=_bytes(operators, attends=True),
        attention=_bytes(prefill, attends=True),
        dense=_bytes(prefill, attends=False),
        attending=prefill_time(attention, rest, device) / whole if whole else 0.0,
    )
    of = {True: bandwidth, False: device.bandwidth}
    return sum(operator.time(share, device, of[operator.attends]) for operator in operators)


def _bytes(operators: Sequence[Operator], attends: bool) -> float:
    return sum(operator.bytes for operator in operators if operator.attends == attends)


def contended_bandwidth(
    bandwidth: float, decode: float, attention: float, dense: float, attending: float
) -> float:
    """Bytes/s that attention of decoding gets.

    Args:
      bandwidth: of the memory.
      decode: bytes that attention of decoding reads.
      attention, dense: bytes that the two kinds of operators of prefill read.
      attending: share of prefill's time in attention.
    """
    if not decode:
        return bandwidth
    overlap = attending * decode / (decode + attention) + (1 - attending) * decode / (decode + dense)
    return bandwidth * overlap


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model, all layers together; parameters are what a token passes, but for experts."""

    dense: float  # parameters outside the experts
    expert: float  # parameters of one expert, in all layers
    num_experts: int  # of a layer
    k: int  # experts per token
    kv_bytes: float  # of one position
    kv_flops: float  # of one query and one position
    itemsize: float = 2.0  # bytes per parameter

    def operators(self, rows: int, pairs: float, positions: float) -> tuple[Operator, ...]:
        """Of a step of `rows` tokens: `pairs` of a token and a position, `positions` read from the cache."""
        met = touched(rows, self.num_experts, self.k)
        return (
            Operator(2 * rows * self.dense, self.itemsize * self.dense),
            Operator(2 * rows * self.k * self.expert, self.itemsize * met * self.expert),
            Operator(pairs * self.kv_flops, positions * self.kv_bytes, attends=True),
        )


@dataclasses.dataclass(frozen=True)
class Rule:
    """When which phase is favoured, and what the other is left."""

    alpha: float = 1.3  # times its least time that prefill may take
    beta: float = 1.1  # times its least time that decoding may take
    full: float = 0.7  # share of the cache from which on decoding is favoured
    delta: int = 5  # percent; smaller changes are not worth it
    least: int = 1  # percent that each phase keeps

    def __post_init__(self):
        require(min(self.alpha, self.beta) > 1, "alpha and beta must be above 1")
        require(0 <= self.full <= 1, f"full={self.full} must lie between 0 and 1")
        require(1 <= self.least <= 50, f"least={self.least} must lie between 1 and 50 percent")


@dataclasses.dataclass(frozen=True)
class Split:
    """Percent of the device for prefill; the rest is for decoding."""

    prefill: int
    compatible: bool = True  # both phases take no longer than their slacks allow

    @property
    def decode(self) -> int:
        return 100 - self.prefill


def favour(other: Time, slack: float, start: int, least: int = 1) -> int:
    """The largest share for one phase that lets the other take `slack` times its least time.

    One step at a time from `start`, so that a warm start asks the model two to four times.
    """
    bound = slack * other(100)
    share = min(max(start, least), 100 - least)
    while share > least and other(100 - share) > bound:
        share -= 1
    while share < 100 - least and other(100 - share - 1) <= bound:
        share += 1
    return share


def choose(prefill: Time, decode: Time, usage: float, now: int, rule: Rule) -> Split:
    """The split for the next steps.

    Args:
      prefill, decode: seconds of the next step of each phase.
      usage: share of the cache that is in use.
      now: percent that prefill has.
      rule: of the choice.
    """
    if usage <= rule.full:
        share = favour(decode, rule.beta, now, rule.least)
        compatible = prefill(share) <= rule.alpha * prefill(100)
    else:
        share = 100 - favour(prefill, rule.alpha, 100 - now, rule.least)
        compatible = decode(100 - share) <= rule.beta * decode(100)
    if compatible:
        return Split(share)
    needed = 100 - favour(prefill, rule.alpha, 100 - now, rule.least)
    others = 100 - favour(decode, rule.beta, now, rule.least)
    share = round(100 * needed / (needed + others))
    return Split(min(max(share, rule.least), 100 - rule.least), compatible=False)


def settle(applied: int, target: int, delta: int) -> int:
    """The target if it is further than `delta` from what is applied; what is applied otherwise."""
    return target if abs(target - applied) > delta else applied
