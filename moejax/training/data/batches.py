"""Which rows make up the batch of a step: a function of step and seed alone, for any number of processes."""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Iterator

import numpy as np

from moejax.config import require
from moejax.training.data.packing import Rows

READ_AHEAD = 4  # batches that the reading thread keeps ready


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """A sequence without end whose item `step` is this process's share of that step's batch.

    The rows are shuffled anew for each epoch and read on across its end, so no row is left out.
    Process p takes the p-th of equal slices of the global batch.
    """

    rows: Rows
    batch_rows: int  # of all processes together
    seed: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self):
        require(self.seed >= 0, f"train.seed={self.seed} must not be negative")
        require(
            self.batch_rows % self.process_count == 0,
            f"train.batch_rows={self.batch_rows} is not divisible by the {self.process_count} processes; "
            "choose a batch that splits evenly",
        )

    def __len__(self) -> int:
        return sys.maxsize // self.batch_rows

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        share = self.batch_rows // self.process_count
        first = step * self.batch_rows + self.process_index * share
        return take(self.rows, self.row_indices(first, share))

    def row_indices(self, first: int, count: int) -> np.ndarray:
        """The rows at places `first` .. `first + count - 1` of the endless shuffled sequence."""
        parts = []
        while count > 0:
            epoch, start = divmod(first, self.rows.num_rows)
            parts.append(shuffled(self.rows.num_rows, self.seed, epoch)[start : start + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)


@functools.lru_cache(maxsize=2)
def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(count)`; the sort of Philox's raw bits, which numpy promises to keep."""
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(bits, kind="stable")


def take(rows: Rows, index_B: np.ndarray) -> dict[str, np.ndarray]:
    """The batch of these rows: token, target, pos, seg (int32) and weight (float32), each [B, T]."""
    return {
        "token": np.asarray(rows.token_NT[index_B]),
        "target": np.asarray(rows.target_NT[index_B]),
        "weight": rows.weight_NT[index_B].astype(np.float32),
        "pos": np.asarray(rows.pos_NT[index_B]),
        "seg": np.asarray(rows.seg_NT[index_B]),
    }


def batches(rows: Rows, batch_rows: int, seed: int, *, process_index: int = 0, process_count: int = 1):
    """A grain iterator over the batches of this process, read ahead by a thread.

    `get_state()` is JSON-able and holds one integer, the next step; `set_state` continues exactly there.

    Raises:
      UsageError: the batch does not split evenly over the processes.
    """
    import grain  # here, because it takes seconds and loads jax

    source = BatchSource(rows, batch_rows, seed, process_index, process_count)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=READ_AHEAD)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def held_out_batches(
    rows: Rows, batch_rows: int, limit_rows: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """All rows once, in order, or `limit_rows` of them evenly spread; weight 0 fills up the last batch."""
    count = rows.num_rows if limit_rows is None else min(limit_rows, rows.num_rows)
    chosen = np.arange(count) * rows.num_rows // count
    for first in range(0, count, batch_rows):
        batch = take(rows, chosen[first : first + batch_rows])
        missing = batch_rows - len(batch["token"])
        yield {name: np.pad(array, ((0, missing), (0, 0))) for name, array in batch.items()}


def digest(batch: dict[str, np.ndarray]) -> str:
    """sha256 of a batch; equal digests in two logs mean equal data."""
    total = hashlib.sha256()
    for name in sorted(batch):
        total.update(f"{name} {batch[name].dtype} {batch[name].shape}".encode())
        total.update(np.ascontiguousarray(batch[name]))
    return total.hexdigest()
