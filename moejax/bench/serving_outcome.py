"""What users notice of a schedule, and what it costs."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from moejax.bench.report import Measure
from moejax.serving.engine import Step


@dataclasses.dataclass(frozen=True)
class Slo:
    """What a request is promised: both, or it does not count."""

    ttft: float  # s from arrival to the first token
    tbt: float  # s between any two tokens


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of serving a list of requests."""

    first: np.ndarray  # s, of every request
    gaps: np.ndarray  # s, of all requests together
    attained: int  # requests that kept the promise
    seconds: float  # from the first arrival to the last token
    steps: int
    prompt_tokens: int  # whenever a request began, those of earlier stays included
    found_tokens: int  # of them in the cache
    loads: int  # of experts, summed over layers and steps
    restarts: int  # of requests that lost their slot

    @property
    def requests(self) -> int:
        return len(self.first)

    @property
    def tokens(self) -> int:
        """Written ones."""
        return len(self.first) + len(self.gaps)

    @property
    def gap99(self) -> float:
        return float(np.percentile(self.gaps, 99)) if len(self.gaps) else 0.0

    def measures(self, name: str) -> list[Measure]:
        """For a report."""
        gaps = self.gaps if len(self.gaps) else np.zeros(1)
        figures = (
            ("TTFT median", np.median(self.first), "s", "lower", self.requests),
            ("TTFT P99", np.percentile(self.first, 99), "s", "lower", self.requests),
            ("TBT median", np.median(gaps), "s", "lower", len(gaps)),
            ("TBT P99", self.gap99, "s", "lower", len(gaps)),
            ("TBT max", gaps.max(), "s", "lower", len(gaps)),
            ("goodput", self.attained / self.seconds, "requests/s", "higher", 1),
            ("in time", self.attained / self.requests, "share", "higher", self.requests),
            ("written", self.tokens / self.seconds, "tokens/s", "higher", 1),
            ("read", (self.prompt_tokens - self.found_tokens) / self.seconds, "tokens/s", "neither", 1),
            ("found in the cache", self.found_tokens / max(self.prompt_tokens, 1), "share", "higher", 1),
            ("experts loaded", self.loads / self.tokens, "per token", "lower", 1),
            ("steps", self.steps, "", "neither", 1),
            ("restarts", self.restarts, "", "lower", 1),
        )
        return [Measure(f"{name}: {what}", float(x), unit, better, n) for what, x, unit, better, n in figures]


def watch(steps: Iterable[Step], slo: Slo) -> Outcome:
    """Run to the end, and remember what came when."""
    runs, last = {}, {}  # by visit; by job
    first, gaps, late, arrival = [], [], set(), {}
    number = loads = 0
    now = begin = None
    for step in steps:
        number, now, loads = number + 1, step.now, loads + step.result.expert_loads
        for work in step.result.plan.works:
            if work.run.visit not in runs:
                runs[work.run.visit] = (work.run.given, work.run.shared)
                arrival[work.run.job.id] = work.run.job.arrival
        begin = min(arrival.values()) if begin is None else begin
        for drawn in step.written:
            waited = now - last.get(drawn.job, arrival[drawn.job])
            begun = drawn.job in last
            (gaps if begun else first).append(waited)
            if waited > (slo.tbt if begun else slo.ttft):
                late.add(drawn.job)
            last[drawn.job] = now
    given, shared = np.sum(list(runs.values()), axis=0).tolist()
    return Outcome(
        np.array(first), np.array(gaps), len(last) - len(late), now - begin, number,
        given, shared, loads, len(runs) - len(last),
    )  # fmt: skip
