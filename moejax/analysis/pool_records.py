"""What a planner of prefill and decode pools speaks of: requests, instances, pools, and when answers came."""

import dataclasses

import numpy as np

from moejax.analysis.pool_latency import Latency
from moejax.config import require


@dataclasses.dataclass(frozen=True)
class Requests:
    """Columns over N requests, by arrival."""

    arrival: np.ndarray  # s
    prompt: np.ndarray  # tokens
    output: np.ndarray  # tokens, at least 1

    def __post_init__(self):
        require(len(self.arrival) >= 1, "there are no requests to simulate")
        require(bool((np.diff(self.arrival) >= 0).all()), "requests must be in the order of their arrival")
        require(
            min(self.prompt.min(), self.output.min()) >= 1, "every prompt and output has at least 1 token"
        )

    @property
    def size(self) -> np.ndarray:
        """Tokens of keys and values that each holds in the end."""
        return self.prompt + self.output - 1

    def at_rate(self, rate: float) -> "Requests":
        """The same requests, arriving `rate` per second on average: gaps are scaled, not drawn anew."""
        own = (len(self.arrival) - 1) / max(self.arrival[-1] - self.arrival[0], 1e-12)
        return dataclasses.replace(self, arrival=(self.arrival - self.arrival[0]) * own / rate)


def draw(lengths: np.ndarray, count: int, seed: int = 0) -> Requests:
    """Requests with lengths drawn from rows (prompt, output) of a history, one per second on average."""
    rng = np.random.default_rng(seed)
    rows = np.asarray(lengths)[rng.integers(len(lengths), size=count)]
    return Requests(np.cumsum(rng.exponential(size=count)), rows[:, 0], rows[:, 1])


@dataclasses.dataclass(frozen=True)
class Instance:
    """One copy of the model on tp * pp devices."""

    latency: Latency  # with this tp
    tp: int = 1
    pp: int = 1
    room: float = float("inf")  # tokens of keys and values
    max_requests: int = 1024  # of a step
    stage_overhead: float = 1e-3  # s, per stage of a prefill in a pipeline

    @property
    def devices(self) -> int:
        return self.tp * self.pp

    def read_stage(self, prompts) -> float:
        """Seconds that each stage takes for these prompts together."""
        whole = self.latency.prefill(sum(prompts), sum(length**2 for length in prompts))
        return whole / self.pp + (self.stage_overhead * self.pp if self.pp > 1 else 0.0)

    def write_stage(self, context: int, requests: int) -> float:
        return self.latency.decode_step(context, requests) / self.pp


@dataclasses.dataclass(frozen=True)
class Pools:
    """What serves. Without a prefill pool prompts are there at once; without a decode pool one token is."""

    prefill: Instance | None
    decode: Instance | None
    num_prefill: int = 1
    num_decode: int = 1
    saturation: int = 512  # tokens that keep a prefill instance busy, L_m
    fetch: float = 0.0  # s per token of keys and values

    def __post_init__(self):
        require(self.prefill is not None or self.decode is not None, "a system needs a pool")
        require(min(self.num_prefill, self.num_decode, self.saturation) >= 1, "counts must be at least 1")

    @property
    def devices(self) -> int:
        pools = ((self.prefill, self.num_prefill), (self.decode, self.num_decode))
        return sum(count * instance.devices for instance, count in pools if instance)


@dataclasses.dataclass(frozen=True)
class Timing:
    """When each request was answered, in seconds."""

    first: np.ndarray
    last: np.ndarray
    ttft: np.ndarray  # arrival to first token
    tpot: np.ndarray  # between tokens after the first, on average; 0 for one token

    def attainment(self, ttft: float, tpot: float) -> float:
        """Share of the requests that meet both targets."""
        return float(np.mean((self.ttft <= ttft) & (self.tpot <= tpot)))


def timing(requests: Requests, first: np.ndarray, last: np.ndarray) -> Timing:
    """What users saw, of when the tokens came."""
    gaps = np.maximum(requests.output - 1, 1)
    return Timing(first, last, first - requests.arrival, (last - first) / gaps)
