"""How long prefill and decode steps take, fitted to measured steps; and how long a prompt waits for its turn.

DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving (Zhong et
al. 2024, arXiv 2401.09670), appendix A and section 3. With t tokens and t2 the sum of squared lengths,

    prefill = a + b t + c t2        decode = a + b context + c requests + d experts

Differs from the paper: a step of a mixture of experts reads the experts that its tokens meet, so decoding has
a term for them; it is 0 for dense models. Coefficients are never negative. Times are in seconds.
"""

import dataclasses
import itertools

import numpy as np

from moejax.config import require

LARGE = 95  # requests from which on the paper's decode steps follow a second line


@dataclasses.dataclass(frozen=True)
class PrefillTime:
    """Seconds of a step that reads prompts."""

    step: float
    token: float
    square: float  # per squared token of a prompt

    def __call__(self, tokens: int, squares: int) -> float:
        return self.step + self.token * tokens + self.square * squares


@dataclasses.dataclass(frozen=True)
class DecodeTime:
    """Seconds of a step that writes one token for each request."""

    step: float
    context: float  # per token that is attended to
    request: float
    expert: float = 0.0  # per expert that is read, in each layer
    num_experts: int = 1
    k: int = 1  # experts per token

    def __call__(self, context: int, requests: int) -> float:
        met = self.expert and touched(requests, self.num_experts, self.k)
        return self.step + self.context * context + self.request * requests + self.expert * met


@dataclasses.dataclass(frozen=True)
class Latency:
    """A model on one instance: both phases on the same devices."""

    prefill: PrefillTime
    decode: DecodeTime
    decode_large: DecodeTime | None = None  # from LARGE requests on

    def decode_step(self, context: int, requests: int) -> float:
        large = requests >= LARGE and self.decode_large is not None
        return (self.decode_large if large else self.decode)(context, requests)

    def with_overhead(self, step: float, token: float) -> "Latency":
        """The same with an engine that takes `step` and per token `token` seconds longer."""
        prefill = dataclasses.replace(
            self.prefill, step=self.prefill.step + step, token=self.prefill.token + token
        )
        slower = [
            line and dataclasses.replace(line, step=line.step + step, context=line.context + token)
            for line in (self.decode, self.decode_large)
        ]
        return Latency(prefill, *slower)


def touched(tokens, num_experts: int, k: int) -> float:
    """Experts of a layer that so many tokens meet on average, if each picks `k` at random."""
    return num_experts * (1 - (1 - k / num_experts) ** tokens)


def fit_prefill(tokens, squares, seconds) -> PrefillTime:
    """Least squares of the relative error over measured steps.

    Args:
      tokens: of each step.
      squares: sum of squared prompt lengths of each step.
      seconds: that it took.

    Raises:
      UsageError: steps are too few, or too alike, to tell the coefficients apart.
    """
    tokens = np.asarray(tokens, np.float64)
    return PrefillTime(*_fit([np.ones_like(tokens), tokens, squares], seconds))


def fit_decode(context, requests, seconds, num_experts: int = 1, k: int = 1) -> DecodeTime:
    """The same for decoding; with `num_experts` over 1 also the time per expert."""
    requests = np.asarray(requests, np.float64)
    columns = [np.ones_like(requests), context, requests]
    if num_experts > 1:
        columns.append(touched(requests, num_experts, k))
    return DecodeTime(*_fit(columns, seconds), *([0.0] * (num_experts == 1)), num_experts, k)


def fit_decode_pair(context, requests, seconds) -> tuple[DecodeTime, DecodeTime | None]:
    """The paper's two lines, apart at LARGE requests; the second is None if nothing so large was measured."""
    context, requests, seconds = (np.asarray(column, np.float64) for column in (context, requests, seconds))
    small = requests < LARGE
    first = fit_decode(context[small], requests[small], seconds[small])
    large = None if small.all() else fit_decode(context[~small], requests[~small], seconds[~small])
    return first, large


def _fit(columns, seconds) -> list[float]:
    """Coefficients of at least 0. The best ones are an unbounded fit on some of the columns: try them all."""
    columns = np.stack([np.asarray(column, np.float64) for column in columns], -1)
    seconds = np.asarray(seconds, np.float64)
    require(bool((seconds > 0).all()), "measured seconds must be above 0")
    relative = columns / seconds[:, None]
    scale, count = np.linalg.norm(relative, axis=0), columns.shape[1]
    relative /= scale
    rank = np.linalg.matrix_rank(relative)
    require(
        rank == count,
        f"{len(seconds)} measured steps tell {rank} of {count} coefficients apart; "
        "measure steps that differ in every size",
    )
    best, least = np.zeros(count), np.inf
    for chosen in itertools.product([False, True], repeat=count):
        found = np.zeros(count)
        found[list(chosen)] = np.linalg.lstsq(relative[:, chosen], np.ones(len(seconds)), rcond=None)[0]
        error = np.sum((relative @ found - 1) ** 2)
        if (found >= 0).all() and error < least:
            best, least = found, error
    return (best / scale).tolist()


def wait_one(time: float, rate: float) -> float:
    """Mean seconds to the first token on one device (M/D/1): prompts of `time` seconds at Poisson `rate`."""
    _check_load(rate * time, 1.0)
    return time + rate * time**2 / (2 * (1 - rate * time))


def wait_pipeline(time: float, rate: float) -> float:
    """The same on two devices in a row, half the layers each."""
    _check_load(rate * time, 2.0)
    return time + rate * time**2 / (4 * (2 - rate * time))


def wait_tensor(time: float, rate: float, speedup: float) -> float:
    """The same on two devices that share every product and are `speedup` times as fast as one."""
    _check_load(rate * time, speedup)
    return time / speedup + rate * time**2 / (2 * speedup * (speedup - rate * time))


def crossover(speedup: float) -> float:
    """Load, rate times seconds, from which on two devices in a row answer earlier than two that share."""
    require(1 < speedup < 2, f"speedup={speedup} of two devices must lie between 1 and 2")
    low, high = 0.0, speedup
    for _ in range(60):
        load = (low + high) / 2
        if wait_tensor(1.0, load, speedup) < wait_pipeline(1.0, load):
            low = load
        else:
            high = load
    return low


def _check_load(load: float, most: float) -> None:
    require(
        0 <= load < most, f"rate * time = {load:.3g} must be below {most:g}, or the queue grows without end"
    )
