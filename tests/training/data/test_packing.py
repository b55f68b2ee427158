"""Packing: a page of numbers to redo by hand, then that every token is asked for exactly once."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from moejax.training.data.packing import pack

BOS, EOS = 1, 2


def ids(*values):
    return np.array(values, np.int32)


def test_worked_example():
    # Two documents, rows of 4; B and E frame each, and the end of the last row is padding:
    #   inputs   B 5 6 7 | B 8 9 .        targets  5 6 7 E | 8 9 E .
    rows = pack([ids(5, 6, 7), ids(8, 9)], 4, BOS, EOS)
    np.testing.assert_array_equal(rows.token_NT, [[1, 5, 6, 7], [1, 8, 9, 0]])
    np.testing.assert_array_equal(rows.target_NT, [[5, 6, 7, 2], [8, 9, 2, 0]])
    np.testing.assert_array_equal(rows.pos_NT, [[0, 1, 2, 3], [0, 1, 2, 0]])
    np.testing.assert_array_equal(rows.seg_NT, [[1, 1, 1, 1], [1, 1, 1, 0]])
    np.testing.assert_array_equal(rows.weight_NT, [[1, 1, 1, 1], [1, 1, 1, 0]])
    assert (rows.num_rows, rows.seq_len, rows.num_targets) == (2, 4, 7)


def test_a_document_over_the_row_end_goes_on_as_a_new_segment():
    # The second document begins behind the first; its third input, 6, opens the next row at position 0.
    rows = pack([ids(4), ids(5, 6, 7, 8)], 4, BOS, EOS)
    np.testing.assert_array_equal(rows.token_NT, [[1, 4, 1, 5], [6, 7, 8, 0]])
    np.testing.assert_array_equal(rows.target_NT, [[4, 2, 5, 6], [7, 8, 2, 0]])
    np.testing.assert_array_equal(rows.pos_NT, [[0, 1, 0, 1], [0, 1, 2, 0]])
    np.testing.assert_array_equal(rows.seg_NT, [[1, 1, 2, 2], [1, 1, 1, 0]])


def test_dtypes():
    rows = pack([ids(4)], 4, BOS, EOS)
    kinds = {name: array.dtype for name, array in vars(rows).items()}
    assert kinds.pop("weight_NT") == np.bool_
    assert set(kinds.values()) == {np.dtype(np.int32)} and len(kinds) == 4


documents = st.lists(st.lists(st.integers(0, 20), max_size=30), min_size=1, max_size=12)


@given(documents, st.integers(2, 9))
def test_every_token_and_every_end_is_a_target_once_and_in_order(texts, seq_len):
    rows = pack([ids(*text) for text in texts], seq_len, BOS, EOS)
    targets = rows.target_NT[rows.weight_NT]
    inputs = rows.token_NT[rows.weight_NT]
    assert targets.tolist() == [token for text in texts for token in (*text, EOS)]
    assert inputs.tolist() == [token for text in texts for token in (BOS, *text)]
    assert (~rows.weight_NT).sum() < seq_len


@given(documents, st.integers(2, 9))
def test_segments_never_join_two_documents_and_positions_count_from_their_start(texts, seq_len):
    rows = pack([ids(*text) for text in texts], seq_len, BOS, EOS)
    owner = np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])
    owner_NT = np.full(rows.weight_NT.shape, -1)
    owner_NT[rows.weight_NT] = owner
    for row_owner, seg, pos in zip(owner_NT, rows.seg_NT, rows.pos_NT, strict=True):
        names = list(dict.fromkeys(row_owner[row_owner >= 0]))
        expected_seg = [names.index(name) + 1 if name >= 0 else 0 for name in row_owner]
        assert seg.tolist() == expected_seg
        expected_pos = [list(seg[:i]).count(s) if s else 0 for i, s in enumerate(seg)]
        assert pos.tolist() == expected_pos
