"""Requests through pools of prefill and decode instances, event by event.

DistServe (Zhong et al. 2024, arXiv 2401.09670), section 4. A request goes to the prefill instance with the
shortest queue. Prompts are read first come, first served, together while they are few enough tokens to leave
the devices idle, longer ones alone. The keys and values stay there until the least loaded decode instance
has room, which then fetches them; what is not fetched yet holds back prefill. Decoding is batched anew every
step.

Differs from the paper: a request reserves the room of its whole text when it is fetched, so that none is
swapped out; fetching takes bytes / bandwidth, which the released simulator leaves out.
"""

import collections
import heapq

import numpy as np

from moejax.analysis.pool_records import Instance, Pools, Requests, Timing, timing
from moejax.config import require

# Events of one moment happen in this order: all that arrives is seen before anything begins.
_ARRIVE, _READ, _FETCHED, _WRITTEN, _BEGIN_READ, _BEGIN_WRITE = range(6)


def simulate(pools: Pools, requests: Requests) -> Timing:
    """Run every request through the pools.

    Raises:
      UsageError: a request is larger than an instance.
    """
    if pools.prefill:
        _check_room(pools.prefill, requests.prompt)
    if pools.decode:
        _check_room(pools.decode, requests.size)
    return timing(requests, *_Run(pools, requests).play())


def simulate_colocated(instance: Instance, requests: Requests, saturation: int = 512) -> Timing:
    """The same requests on one instance that reads before it writes: who writes waits for new prompts.

    Args:
      instance: without a pipeline.
      requests: in the order of their arrival.
      saturation: tokens of prompts that are read in one step.
    """
    require(
        instance.pp == 1, f"pp={instance.pp}: an instance that does both here has no pipeline; give it tp"
    )
    _check_room(instance, requests.size)
    arrival, prompt, size = (x.tolist() for x in (requests.arrival, requests.prompt, requests.size))
    first, last = np.zeros(len(prompt)), np.zeros(len(prompt))
    now, coming, used, lane = 0.0, 0, 0, _Lane(requests)
    while coming < len(prompt) or lane.size:
        if not lane.size:
            now = max(now, arrival[coming])
        begin, room = coming, saturation
        while coming < len(prompt) and arrival[coming] <= now and lane.size < instance.max_requests:
            if (coming > begin and prompt[coming] > room) or used + size[coming] > instance.room:
                break
            room, used = room - prompt[coming], used + size[coming]
            lane.joining.append(coming)
            coming += 1
        if coming > begin:
            now += instance.read_stage(prompt[begin:coming])
            first[begin:coming] = last[begin:coming] = now
            over = [i for i in lane.joining if requests.output[i] == 1]
            lane.joining[:] = [i for i in lane.joining if requests.output[i] > 1]
        else:
            now += instance.write_stage(*lane.begin())
            over = lane.end()
        last[over] = now
        used -= sum(size[i] for i in over)
    return timing(requests, first, last)


def _check_room(instance: Instance, tokens: np.ndarray) -> None:
    require(
        int(tokens.max()) <= instance.room,
        f"a request holds {int(tokens.max())} tokens, an instance has room for {instance.room:g}; "
        "give it more devices",
    )


class _Pipe:
    """Stages in a row; each takes what comes in order."""

    def __init__(self, stages: int):
        self.free = [0.0] * stages

    def push(self, now: float, seconds: float) -> float:
        """When what enters now leaves the last stage."""
        for stage, free in enumerate(self.free):
            now = self.free[stage] = max(now, free) + seconds
        return now


class _Reader:
    """A prefill instance."""

    def __init__(self, instance: Instance):
        self.pipe, self.queue = _Pipe(instance.pp), collections.deque()
        self.queued = 0  # tokens in the queue
        self.held = 0  # tokens of keys and values that are being made or not fetched


class _Lane:
    """Requests that step together; a pipeline of n stages keeps n lanes going."""

    def __init__(self, requests: Requests):
        self.prompt, self.output = requests.prompt.tolist(), requests.output.tolist()
        self.steps, self.context, self.busy = 0, 0, False
        self.joining: list[int] = []
        self.ends: list[tuple[int, int]] = []  # heap of (step after which it is over, request)

    def begin(self) -> tuple[int, int]:
        """Let in who waits. Returns the tokens that the step attends to, and its requests."""
        for i in self.joining:
            self.context += self.prompt[i]
            heapq.heappush(self.ends, (self.steps + self.output[i] - 1, i))
        self.joining.clear()
        self.busy = True
        return self.context, len(self.ends)

    def end(self) -> list[int]:
        """Every request has one token more. Returns those that are over."""
        self.busy, self.steps, self.context = False, self.steps + 1, self.context + len(self.ends)
        over = []
        while self.ends and self.ends[0][0] == self.steps:
            over.append(heapq.heappop(self.ends)[1])
            self.context -= self.prompt[over[-1]] + self.output[over[-1]] - 1
        return over

    @property
    def size(self) -> int:
        return len(self.joining) + len(self.ends)


class _Writer:
    """A decode instance."""

    def __init__(self, instance: Instance, requests: Requests):
        self.pipe, self.lanes = _Pipe(instance.pp), [_Lane(requests) for _ in range(instance.pp)]
        self.queue = collections.deque()  # (request, reader that holds it)
        self.used, self.requests = 0, 0  # fetched, or on the way
        self.link = 0.0  # when it is free

    @property
    def load(self) -> int:
        return self.requests + len(self.queue)


class _Run:
    """One simulation."""

    def __init__(self, pools: Pools, requests: Requests):
        self.pools, self.size = pools, requests.size.tolist()
        self.prompt, self.output = requests.prompt.tolist(), requests.output.tolist()
        self.first, self.last = np.zeros(len(self.prompt)), np.zeros(len(self.prompt))
        self.readers = [_Reader(pools.prefill) for _ in range(pools.num_prefill if pools.prefill else 0)]
        self.writers = [
            _Writer(pools.decode, requests) for _ in range(pools.num_decode if pools.decode else 0)
        ]
        self.events, self.count = [], 0
        for i, arrival in enumerate(requests.arrival.tolist()):
            self._at(arrival, _ARRIVE, i)

    def play(self) -> tuple[np.ndarray, np.ndarray]:
        """When the first and the last token of each request came."""
        act = (self._arrive, self._read, self._fetched, self._written, self._begin_read, self._begin_write)
        while self.events:
            now, kind, _, what = heapq.heappop(self.events)
            act[kind](now, *what)
        return self.first, self.last

    def _at(self, time: float, kind: int, *what) -> None:
        self.count += 1  # so that equal events are never compared by what they are about
        heapq.heappush(self.events, (time, kind, self.count, what))

    def _arrive(self, now: float, i: int) -> None:
        if not self.readers:
            return self._leave(now, i, None)
        reader = min(self.readers, key=lambda reader: reader.queued)
        reader.queue.append(i)
        reader.queued += self.prompt[i]
        self._at(now, _BEGIN_READ, reader)

    def _begin_read(self, now: float, reader: _Reader) -> None:
        if reader.pipe.free[0] > now:
            return  # the first stage is busy, and calls again when it is not
        batch, tokens, limits = [], 0, self.pools.prefill
        while reader.queue and len(batch) < limits.max_requests:
            size = self.prompt[reader.queue[0]]
            if (batch and tokens + size > self.pools.saturation) or reader.held + size > limits.room:
                break
            batch.append(reader.queue.popleft())
            tokens, reader.held = tokens + size, reader.held + size
        if batch:
            reader.queued -= tokens
            done = reader.pipe.push(now, limits.read_stage([self.prompt[i] for i in batch]))
            self._at(done, _READ, reader, batch)
            self._at(reader.pipe.free[0], _BEGIN_READ, reader)

    def _read(self, now: float, reader: _Reader, batch: list[int]) -> None:
        for i in batch:
            self._leave(now, i, reader)

    def _leave(self, now: float, i: int, reader: _Reader | None) -> None:
        """The first token is there; a decode instance is asked to fetch the rest."""
        self.first[i] = self.last[i] = now
        if self.output[i] == 1 or not self.writers:
            return self._release(now, i, reader)
        writer = min(self.writers, key=lambda writer: writer.load)
        writer.queue.append((i, reader))
        self._fetch(now, writer)

    def _release(self, now: float, i: int, reader: _Reader | None) -> None:
        if reader:
            reader.held -= self.prompt[i]
            self._at(now, _BEGIN_READ, reader)

    def _fetch(self, now: float, writer: _Writer) -> None:
        """Fetch what there is room for, one after another."""
        limits = self.pools.decode
        while writer.queue and writer.requests < limits.max_requests:
            i, reader = writer.queue[0]
            if writer.used + self.size[i] > limits.room:
                break
            writer.queue.popleft()
            writer.used, writer.requests = writer.used + self.size[i], writer.requests + 1
            writer.link = max(now, writer.link) + self.pools.fetch * self.prompt[i]
            self._at(writer.link, _FETCHED, i, reader, writer)

    def _fetched(self, now: float, i: int, reader: _Reader | None, writer: _Writer) -> None:
        self._release(now, i, reader)
        lane = min(writer.lanes, key=lambda lane: lane.size)
        lane.joining.append(i)
        self._at(now, _BEGIN_WRITE, writer, lane)

    def _begin_write(self, now: float, writer: _Writer, lane: _Lane) -> None:
        if lane.busy or not lane.size:
            return
        stage = self.pools.decode.write_stage(*lane.begin())
        self._at(writer.pipe.push(now, stage), _WRITTEN, writer, lane)

    def _written(self, now: float, writer: _Writer, lane: _Lane) -> None:
        for i in lane.end():
            self.last[i] = now
            writer.used, writer.requests = writer.used - self.size[i], writer.requests - 1
        self._fetch(now, writer)
        self._at(now, _BEGIN_WRITE, writer, lane)
