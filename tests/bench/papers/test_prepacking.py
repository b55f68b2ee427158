"""The layout of packed prompts: the paper's worked example."""

import numpy as np

from moejax.bench.papers.prepacking import laid_out
from moejax.serving.schedulers.packing import pack

LENGTHS = [7, 3, 5, 2, 1, 4]


def test_the_worked_example():
    """Rows [7], [5, 2], [4, 3], [1] of 7 tokens: 28 rows in place of 42, for 22 tokens."""
    prompts = [[10 * i + t for t in range(length)] for i, length in enumerate(LENGTHS)]
    layout = laid_out(prompts, bins := pack(LENGTHS, 7), len(bins), 7)
    assert layout.pos_RM[1].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert layout.seg_RM[1].tolist() == [1, 1, 1, 1, 1, 2, 2]
    assert layout.token_RM[1].tolist() == [20, 21, 22, 23, 24, 30, 31]
    offset_K = layout.last_K + 1 - np.array(LENGTHS)
    places = list(zip(layout.row_K.tolist(), offset_K.tolist(), strict=True))
    assert places == [(0, 0), (2, 4), (1, 0), (1, 5), (3, 0), (2, 0)]
    assert layout.seg_RM.size == 28 and np.sum(layout.seg_RM > 0) == 22


def test_allowed_pairs():
    """Every token sees its own prompt up to itself: the sum of l (l + 1) / 2 is 63, of 4 x 49 = 196."""
    prompts = [[0] * length for length in LENGTHS]
    layout = laid_out(prompts, bins := pack(LENGTHS, 7), len(bins), 7)
    seg_RM = layout.seg_RM
    seen = (seg_RM[:, :, None] == seg_RM[:, None, :]) & (seg_RM[:, :, None] > 0)
    seen &= layout.pos_RM[:, None, :] <= layout.pos_RM[:, :, None]
    assert np.sum(seen) == 63 and seen.size == 196
