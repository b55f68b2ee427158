"""Batches for the loop: read ahead, placed on the devices, and accounted for."""

import hashlib
import time

import jax

from moejax.training import faults
from moejax.training.data import batches
from moejax.training.data.corpus import Corpus
from moejax.training.program import Program


class Feed:
    """The endless sequence of training batches; where it stands is one integer and one hash."""

    def __init__(self, program: Program, corpus: Corpus):
        train = program.run.train
        self.waited = 0.0  # seconds spent waiting for data
        self._program = program
        self._seen = ""
        self._rows = batches.batches(
            corpus.train,
            train.batch_rows,
            train.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def next(self, step: int):
        """The batch of `step`, placed."""
        begin = time.monotonic()
        host = next(self._rows)
        self.waited += time.monotonic() - begin
        self._seen = hashlib.sha256((self._seen + batches.digest(host)).encode()).hexdigest()
        return self._program.place(faults.spoil(step, host))

    def meta(self) -> dict:
        """What a checkpoint keeps: the next step's index, and a hash over every batch so far."""
        return {"data": self._rows.get_state(), "seen": self._seen}

    def restore(self, meta: dict) -> None:
        """Go on exactly where `meta` was taken."""
        self._rows.set_state(meta["data"])
        self._seen = meta["seen"]
