"""How to split devices between reading prompts and writing text, for the most requests served in time.

DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving (Zhong et
al. 2024, arXiv 2401.09670), algorithms 1 and 2. Goodput is the highest rate at which the wanted share of
requests meets both targets; what counts is goodput per device. Each phase has its own tensor (tp) and
pipeline (pp) parallelism. Where nodes are well connected the phases are planned apart, each against its own
target, and replicated to the rate. Where they are not, the parts of prefill and decode that hold the same
layers share a node, and both phases are planned together.

Differs from the paper: fetching keys and values takes time (see `pool_simulator`), and `search_counts` also
tries several instances of one phase per instance of the other.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from moejax.analysis.pool_latency import Latency
from moejax.analysis.pool_records import Instance, Pools, Requests, Timing
from moejax.analysis.pool_simulator import simulate
from moejax.config import require


@dataclasses.dataclass(frozen=True)
class Slo:
    """What users are promised."""

    ttft: float  # s to the first token
    tpot: float  # s per token after it
    share: float = 0.9  # of the requests, for which both hold

    def __post_init__(self):
        require(self.ttft > 0 and self.tpot > 0, "both targets must be above 0 seconds")
        require(0 < self.share <= 1, f"slo.share={self.share} must lie above 0 and at most at 1")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Devices, and the model that is to run on them."""

    nodes: int  # that one instance may span
    node: int  # devices of a node
    memory: float  # bytes of a device
    weights: float  # bytes of the model
    token: float  # bytes of keys and values of one token, in all layers
    bandwidth: float = math.inf  # bytes/s at which a decode instance fetches them
    saturation: int = 512  # tokens of prompts that keep a device busy

    def fits(self, devices: int) -> bool:
        return self.weights / devices < self.memory

    def instance(self, latency: Latency, tp: int, pp: int) -> Instance:
        """With the room that the weights leave."""
        room = (self.memory * tp * pp - self.weights) // self.token if self.token else math.inf
        return Instance(latency, tp, pp, room)

    def pools(self, prefill: Instance | None, decode: Instance | None, counts=(1, 1)) -> Pools:
        return Pools(prefill, decode, *counts, self.saturation, self.token / self.bandwidth)


@dataclasses.dataclass(frozen=True)
class Placement:
    """A unit that is replicated to the rate; goodput in requests per second."""

    prefill: Instance
    decode: Instance
    prefill_goodput: float  # of the unit's prefill part
    decode_goodput: float  # of its decode part; equal where both were planned together
    num_prefill: int = 1  # instances in the unit
    num_decode: int = 1

    @property
    def per_device(self) -> float:
        """Goodput per device, where both parts have as many units as they need of each."""
        prefill, decode = self.num_prefill * self.prefill.devices, self.num_decode * self.decode.devices
        return 1 / (prefill / self.prefill_goodput + decode / self.decode_goodput)

    def replicas(self, rate: float) -> tuple[int, int]:
        """Prefill and decode parts for so many requests per second."""
        return math.ceil(rate / self.prefill_goodput), math.ceil(rate / self.decode_goodput)

    def devices(self, rate: float) -> int:
        prefill, decode = self.replicas(rate)
        return (
            prefill * self.num_prefill * self.prefill.devices + decode * self.num_decode * self.decode.devices
        )


def kv_bytes(layers: int, kv_heads: int, head_width: int, itemsize: int = 2) -> int:
    """Bytes of keys and values of one token."""
    return 2 * layers * kv_heads * head_width * itemsize


def goodput(
    serve: Callable[[Requests], Timing], requests: Requests, slo: Slo, eps: float = 0.01, most: float = 1e4
) -> float:
    """The highest rate, per second, at which enough of `requests` are served in time; 0 if none is.

    A rate counts only as long as requests stay, on average, at most half the time over which they arrive:
    with more at once the sample is a burst, which says nothing of a rate that lasts. A longer sample may
    show more.

    Args:
      serve: the system, simulated.
      requests: of which only the gaps change.
      slo: what in time means.
      eps: relative precision.
      most: rate that is not exceeded.
    """

    def meets(rate: float) -> bool:
        sent = requests.at_rate(rate)
        served = serve(sent)
        lasts = (served.last - sent.arrival).mean() <= sent.arrival[-1] / 2
        return lasts and served.attainment(slo.ttft, slo.tpot) >= slo.share

    high = 1.0
    while meets(high):
        if high == most:
            return most
        high = min(2 * high, most)
    low = high / 2
    while not meets(low):
        high, low = low, low / 2
        if low < 1e-4:
            return 0.0
    while high - low > eps * low:
        rate = (low + high) / 2
        low, high = (rate, high) if meets(rate) else (low, rate)
    return low


def search_high(
    cluster: Cluster, latencies: Mapping[int, Latency], requests: Requests, slo: Slo, eps: float = 0.01
) -> Placement:
    """Algorithm 1, for nodes that are well connected: the best instance of each phase by itself.

    Args:
      cluster: the devices and the model.
      latencies: measured, by tp.
      requests: a sample of what is to be served.
      slo: what counts as served.
      eps: relative precision of goodputs.

    Raises:
      UsageError: no instance has the memory, or none meets the targets at any rate.
    """
    best = {}
    for phase, target in (
        ("prefill", dataclasses.replace(slo, tpot=math.inf)),
        ("decode", dataclasses.replace(slo, ttft=math.inf)),
    ):
        for instance in _instances(cluster, latencies):
            pair = (instance, None) if phase == "prefill" else (None, instance)
            rate = _goodput(cluster.pools(*pair), requests, target, eps)
            if rate / instance.devices > best.get(phase, (0.0,))[0]:
                best[phase] = rate / instance.devices, instance, rate
        require(
            phase in best, f"no {phase} instance meets {slo} at any rate; allow more devices or more time"
        )
    return Placement(*(best[phase][1] for phase in best), *(best[phase][2] for phase in best))


def search_low(
    cluster: Cluster, latencies: Mapping[int, Latency], requests: Requests, slo: Slo, eps: float = 0.01
) -> Placement:
    """Algorithm 2, for nodes that are not: pairs of instances whose segments share a node, planned together.

    Arguments and errors are those of `search_high`.
    """
    pairs = []
    within = list(itertools.product(sorted(latencies), range(1, cluster.node + 1)))  # tp, pp of one segment
    for segments, (tp_p, pp_p), (tp_d, pp_d) in itertools.product(
        range(1, cluster.nodes + 1), within, within
    ):
        shapes = ((tp_p, pp_p * segments), (tp_d, pp_d * segments))
        if tp_p * pp_p + tp_d * pp_d <= cluster.node and all(cluster.fits(tp * pp) for tp, pp in shapes):
            pairs.append([cluster.instance(latencies[tp], tp, pp) for tp, pp in shapes])
    require(bool(pairs), "the model fits in no pair of instances that share their nodes; allow more devices")
    return _best_pair(cluster, [(*pair, 1, 1) for pair in pairs], requests, slo, eps)


def search_counts(
    cluster: Cluster, pair: tuple[Instance, Instance], counts: Sequence[tuple[int, int]], requests, slo: Slo
) -> Placement:
    """How many prefill instances go with how many decode instances.

    Args:
      cluster: of the bandwidth between them.
      pair: a prefill and a decode instance.
      counts: of each, to choose from.
      requests, slo: as in `search_high`.
    """
    return _best_pair(cluster, [(*pair, *count) for count in counts], requests, slo, 0.01)


def _best_pair(cluster: Cluster, units, requests: Requests, slo: Slo, eps: float) -> Placement:
    best = None
    for prefill, decode, *counts in units:
        pools = cluster.pools(prefill, decode, counts)
        rate = _goodput(pools, requests, slo, eps)
        if rate and (best is None or rate / pools.devices > best.per_device):
            best = Placement(prefill, decode, rate, rate, *counts)
    require(best is not None, f"no placement meets {slo} at any rate; allow more devices or more time")
    return best


def _goodput(pools: Pools, requests: Requests, slo: Slo, eps: float) -> float:
    """Of pools; 0 if a request is too large for them."""
    rooms = [(pools.prefill, requests.prompt), (pools.decode, requests.size)]
    if any(instance and tokens.max() > instance.room for instance, tokens in rooms):
        return 0.0
    return goodput(lambda scaled: simulate(pools, scaled), requests, slo, eps)


def _instances(cluster: Cluster, latencies: Mapping[int, Latency]) -> Iterator[Instance]:
    """Every tensor and pipeline parallelism that holds the model; tensors stay within a node."""
    shapes = [
        (tp, pp)
        for tp in sorted(latencies)
        if tp <= cluster.node
        for pp in range(1, cluster.nodes * cluster.node // tp + 1)
        if cluster.fits(tp * pp)
    ]
    require(
        bool(shapes),
        f"{cluster.weights:.3g} bytes of weights do not fit on {cluster.nodes * cluster.node} devices of "
        f"{cluster.memory:.3g} bytes; allow more nodes or a measured larger tp",
    )
    return (cluster.instance(latencies[tp], tp, pp) for tp, pp in shapes)
