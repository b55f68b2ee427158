"""Traces of a run's own batches: what its routers did with the rows of a step, or with held-out text."""

import logging
import pathlib
from collections.abc import Iterable

import jax
import numpy as np

from moejax import sharding
from moejax.analysis.routing.trace import RoutingTrace
from moejax.config import require
from moejax.errors import StorageError
from moejax.model.forward import forward
from moejax.seams import Batch
from moejax.tracing import TraceRecorder
from moejax.training import objective
from moejax.training.program import Program

TRACES_DIR = "traces"

log = logging.getLogger(__name__)


class Tracer:
    """Passes batches through the model of a run once more, without noise, and keeps what the routers did.

    Args:
      rows: of each batch that are kept.
      accumulate: the routers see the first of so many micro-batches, as they do in a step that makes them:
        some of them look at all tokens at once.
      scores: also keep the scores of all experts.
    """

    def __init__(self, program: Program, rows: int, accumulate: int = 1, scores: bool = False):
        m = program.run.model
        self._name = program.run.name
        self._scores = scores
        probe = TraceRecorder(scores).probe

        def first_rows(x, axis: int):
            """On every device, so that every process can read them."""
            return jax.lax.slice_in_dim(sharding.whole(x), 0, min(rows, x.shape[axis]), axis=axis)

        def routed(state, batch):
            if accumulate > 1:
                batch = jax.tree.map(lambda x: x[0], objective.split(batch, accumulate))
            sides = objective.sides_of(m, program.losses, state.loss_state)
            probes = forward(state.params, m, batch, sides=sides, probe=probe).probes
            batch = Batch(batch.token_BT, batch.pos_BT, batch.seg_BT, batch.valid_BT)
            # layers come first; what is one number per layer has no rows
            seen = jax.tree.map(lambda x: first_rows(x, 1) if x.ndim > 1 else x, probes)
            return jax.tree.map(lambda x: first_rows(x, 0), batch), seen

        self._routed = jax.jit(routed)
        _, seen = jax.eval_shape(self._routed, program.abstract_state(), program.abstract_batch())
        self.has_routers = bool(jax.tree.leaves(seen))

    def trace(self, state, batches: Iterable[Batch], step: int) -> RoutingTrace:
        """The trace of global batches; all processes take part."""
        recorder = TraceRecorder(self._scores)
        for batch in batches:
            recorder.add(
                *jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), self._routed(state, batch))
            )
        return recorder.trace(self._name, step)


class StepTracer:
    """Writes RUN/traces/step_N.npz of every N divisible by `train.trace_every`; a full disk stops nothing.

    Raises:
      UsageError: the model has no routers.
    """

    def __init__(self, program: Program, run_dir: pathlib.Path):
        cfg = program.run.train
        self._every, self._folder = cfg.trace_every, run_dir / TRACES_DIR
        self._tracer = Tracer(program, cfg.trace_rows, cfg.accumulate) if cfg.trace_every else None
        require(
            self._tracer is None or self._tracer.has_routers,
            f"train.trace_every={cfg.trace_every} traces routers, but the model has none; set it to 0",
        )

    def __call__(self, state, batch: Batch, done: int) -> None:
        """Before step number `done` changes `state`."""
        if not self._tracer or done % self._every:
            return
        trace = self._tracer.trace(state, [batch], done)
        if jax.process_index() != 0:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            trace.save(self._folder / f"step_{done}.npz")
        except (OSError, StorageError) as error:
            log.warning("no trace of step %d: %s", done, error)
