"""Held-out loss and bits per byte, without touching the run's randomness."""

from collections.abc import Iterator

import jax
import numpy as np

from moejax.training import step
from moejax.training.data.batches import held_out_batches
from moejax.training.data.corpus import Corpus
from moejax.training.program import Program


class Evaluator:
    """Measures a state on the held-out rows, by the first loss of the run that measures text."""

    def __init__(self, program: Program, corpus: Corpus):
        self._program, self._corpus = program, corpus
        m, losses = program.run.model, program.losses
        text = next(index for index, loss in enumerate(losses) if loss.measures_text)

        def sums(params, loss_state, batch):
            # All losses take part: their controllers shape the routing. The compiler drops unused sums.
            return step.eval_step(params, loss_state, batch, m=m, losses=losses)[text]

        self._sums = jax.jit(sums)

    def __call__(self, state, limit_rows: int | None = None, beat=lambda: None) -> dict[str, float]:
        """eval/loss (nats per token) and eval/bits_per_byte over all held-out rows, or evenly spread ones.

        Args:
          beat: called after every batch, for a watchdog.
        """
        nats = targets = 0.0
        for host in own_held_out(self._program, self._corpus, limit_rows):
            seen = self._sums(state.params, state.loss_state, self._program.place(host))
            nats += float(seen["nll"])
            targets += float(seen["weight"])
            beat()
        return {"eval/loss": nats / targets, "eval/bits_per_byte": self._corpus.bits_per_byte(nats, targets)}


def own_held_out(program: Program, corpus: Corpus, limit_rows: int | None) -> Iterator[dict[str, np.ndarray]]:
    """Global held-out batches, of which every process sees its own rows."""
    batch_rows = program.run.train.batch_rows
    share = batch_rows // jax.process_count()
    own = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    for batch in held_out_batches(corpus.held_out, batch_rows, limit_rows):
        yield {name: array[own] for name, array in batch.items()}
