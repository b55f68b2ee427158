"""Documents to rows of (input, target) pairs, nothing dropped.

A document t1..tn is read as BOS, t1, .., tn and must answer t1, .., tn, EOS. The pairs of all documents,
in order, fill row after row; where a row ends, the document goes on in the next one as a new segment with
positions from 0. Only the last row is padded.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rows:
    """N packed rows of T pairs."""

    token_NT: np.ndarray  # int32 inputs
    target_NT: np.ndarray  # int32 what follows each input
    pos_NT: np.ndarray  # int32 position within the segment
    seg_NT: np.ndarray  # int32, from 1 within a row; 0 is padding
    weight_NT: np.ndarray  # bool, False on padding

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.token_NT)

    @property
    def seq_len(self) -> int:
        """T."""
        return self.token_NT.shape[1]

    @property
    def num_targets(self) -> int:
        """Tokens to predict: those of the documents and one EOS for each."""
        return int(np.count_nonzero(self.weight_NT))

    def where(self, chosen) -> "Rows":
        """Some of the rows: by their numbers, or a flag for each."""
        return Rows(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def pack(documents: Iterable[np.ndarray], seq_len: int, bos: int, eos: int) -> Rows:
    """Pack the token ids (int32) of at least one document into rows of `seq_len` pairs."""
    documents = list(documents)
    sizes = np.array([len(document) + 1 for document in documents])
    starts = np.cumsum(sizes) - sizes  # of each document in the stream of pairs
    num_pairs = int(sizes.sum())
    shape = (-(-num_pairs // seq_len), seq_len)

    # The stream of targets; the inputs are the same stream one pair later, except where a document begins.
    target_M = np.zeros(shape[0] * seq_len, np.int32)
    token_M = np.zeros_like(target_M)
    eos_1 = np.array([eos], np.int32)
    np.concatenate([part for document in documents for part in (document, eos_1)], out=target_M[:num_pairs])
    token_M[1:num_pairs] = target_M[: num_pairs - 1]
    token_M[starts] = bos

    begins_NT = np.zeros(shape, bool)
    begins_NT.reshape(-1)[starts] = True
    begins_NT[:, 0] = True
    column_T = np.arange(seq_len, dtype=np.int32)
    pos_NT = column_T - np.maximum.accumulate(np.where(begins_NT, column_T, 0), axis=1)
    seg_NT = np.cumsum(begins_NT, axis=1, dtype=np.int32)
    weight_NT = (np.arange(target_M.size) < num_pairs).reshape(shape)
    return Rows(
        token_NT=token_M.reshape(shape),
        target_NT=target_M.reshape(shape),
        pos_NT=np.where(weight_NT, pos_NT, 0).astype(np.int32),
        seg_NT=np.where(weight_NT, seg_NT, 0).astype(np.int32),
        weight_NT=weight_NT,
    )
