"""What a model does with text that it was not trained on: loss, and routing with labels."""

import jax
import numpy as np

from moejax.analysis.routing.trace import RoutingTrace
from moejax.bench.domains import Domains
from moejax.losses.next_token import NextToken
from moejax.model import forward as decoder
from moejax.seams import Batch
from moejax.serving.model import Model
from moejax.tracing import TraceRecorder
from moejax.training.data.batches import held_out_batches, take
from moejax.training.data.packing import Rows
from moejax.training.program import as_batch

BATCH_ROWS = 32


def nats(model: Model, rows: Rows, limit_rows: int | None = None, sides=None) -> float:
    """Per token, over all rows or evenly spread ones.

    Args:
      sides: of the forward pass, instead of the model's own.
    """
    sides, total, weight = model.sides if sides is None else sides, 0.0, 0.0
    for host in held_out_batches(rows, BATCH_ROWS, limit_rows):
        seen = _sums(model.params, as_batch(host), sides, m=model.cfg)
        total, weight = total + float(seen["nll"]), weight + float(seen["weight"])
    return total / weight


def trace(model: Model, text: Domains, rows_each: int, scores: bool = False) -> RoutingTrace:
    """Of held-out rows of every domain, labelled with the domain."""
    recorder = TraceRecorder(scores)
    for name, rows in text.held_out.items():
        for host in held_out_batches(rows, BATCH_ROWS, rows_each):
            batch = as_batch(host)
            probes = _probes(model.params, batch, model.sides, m=model.cfg, probe=recorder.probe)
            recorder.add(batch, probes, label=name)
    return recorder.trace()


def whole_rows(text: Domains, count: int) -> Batch:
    """Rows that one document fills, evenly spread and as many of every domain, at most `count`."""
    parts = []
    for rows in text.held_out.values():
        whole_N = np.flatnonzero((rows.seg_NT == rows.seg_NT[:, :1]).all(axis=1) & rows.weight_NT.all(axis=1))
        place_C = np.linspace(0, len(whole_N) - 1, min(count // len(text.held_out), len(whole_N)))
        parts.append(take(rows, whole_N[place_C.astype(int)]))
    return as_batch({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _forward_sums(params, batch, sides, *, m):
    output = decoder.forward(params, m, batch, sides=sides)
    return NextToken().stats(params, m, (), output, batch)


def _forward_probes(params, batch, sides, *, m, probe):
    return decoder.forward(params, m, batch, sides=sides, probe=probe).probes


_sums = jax.jit(_forward_sums, static_argnames="m")
_probes = jax.jit(_forward_probes, static_argnames=("m", "probe"))
