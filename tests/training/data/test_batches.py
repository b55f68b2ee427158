"""Batches: what step n holds depends on the seed and on nothing else."""

import itertools
import json

import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.training.data.batches import BatchSource, batches, digest, held_out_batches, shuffled
from moejax.training.data.packing import pack

T = 4
# 15 tokens and one end each: 4 full rows, whose first input tells them apart
ROWS = pack([np.arange(10 + 20 * i, 25 + 20 * i, dtype=np.int32) for i in range(5)], T, bos=1, eos=2)
N = 20
GOLDEN = [0, 3, 7, 5, 1, 2, 6, 4]


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def rows_of(batch):
    """Each row by its four targets."""
    return [tuple(row) for row in batch["target"]]


ALL = sorted(map(tuple, ROWS.target_NT.tolist()))


def test_fields():
    batch = next(batches(ROWS, 3, seed=0))
    kinds = {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert kinds == {
        **dict.fromkeys(("token", "target", "pos", "seg"), ((3, T), np.int32)),
        "weight": ((3, T), np.float32),
    }


def test_each_epoch_is_another_permutation_of_all_rows():
    got = [row for batch in take(batches(ROWS, 5, seed=0), 12) for row in rows_of(batch)]
    epochs = [got[i * N : (i + 1) * N] for i in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [ALL] * 3
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != ALL


def test_batches_read_on_across_the_end_of_an_epoch():
    small = [row for batch in take(batches(ROWS, 1, seed=3), 49) for row in rows_of(batch)]
    odd = [row for batch in take(batches(ROWS, 7, seed=3), 7) for row in rows_of(batch)]
    huge = rows_of(next(batches(ROWS, 49, seed=3)))
    assert small == odd == huge


def test_the_order_is_promised_for_ever():
    # A resumed run of next year must find these; golden, from raw Philox bits.
    assert shuffled(8, 0, 0).tolist() == GOLDEN
    assert shuffled(8, 0, 1).tolist() != GOLDEN != shuffled(8, 1, 0).tolist()


def test_resume_repeats_exactly_what_would_have_come():
    straight = [digest(batch) for batch in take(batches(ROWS, 6, seed=1), 12)]
    for cut in (0, 1, 5, 9):
        before = batches(ROWS, 6, seed=1)
        take(before, cut)
        state = json.loads(json.dumps(before.get_state()))
        assert list(state.values()) == [cut]  # one integer, the next step
        after = batches(ROWS, 6, seed=1)
        after.set_state(state)
        assert [digest(batch) for batch in take(after, 12 - cut)] == straight[cut:]


@pytest.mark.parametrize("count", [2, 3, 6])
def test_processes_together_see_the_batch_of_one(count):
    whole = take(batches(ROWS, 6, seed=2), 8)
    parts = [take(batches(ROWS, 6, seed=2, process_index=p, process_count=count), 8) for p in range(count)]
    for step in range(8):
        for name in whole[step]:
            joined = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(joined, whole[step][name])


def test_any_step_without_the_steps_before():
    source = BatchSource(ROWS, 6, seed=2)
    in_order = take(batches(ROWS, 6, seed=2), 5)
    assert [digest(source[step]) for step in (4, 2)] == [digest(in_order[step]) for step in (4, 2)]
    assert source[10**12]["token"].shape == (6, T)


def test_an_uneven_split_is_refused():
    with pytest.raises(UsageError, match=r"train\.batch_rows=6 is not divisible by the 4 processes"):
        batches(ROWS, 6, seed=0, process_count=4)
    with pytest.raises(UsageError, match=r"train\.seed=-1"):
        batches(ROWS, 6, seed=-1)


def test_held_out_batches_cover_all_rows_once_and_pad_with_weight_0():
    got = list(held_out_batches(ROWS, 6))
    assert [batch["token"].shape for batch in got] == [(6, T)] * 4
    targets = np.concatenate([batch["target"][batch["weight"] > 0] for batch in got])
    np.testing.assert_array_equal(targets, ROWS.target_NT[ROWS.weight_NT])
    assert (got[-1]["weight"][2:] == 0).all() and (got[-1]["seg"][2:] == 0).all()


def test_a_limit_takes_rows_evenly_from_all_of_them():
    (batch,) = held_out_batches(ROWS, 4, limit_rows=4)
    np.testing.assert_array_equal(batch["target"], ROWS.target_NT[[0, 5, 10, 15]])
    assert sum(len(b["token"]) for b in held_out_batches(ROWS, 4, limit_rows=99)) == N


def test_digest_sees_every_value():
    batch = BatchSource(ROWS, 2, seed=0)[0]
    for name in batch:
        changed = {**batch, name: batch[name].copy()}
        changed[name][1, 2] += 1
        assert digest(changed) != digest(batch)
    assert digest({name: array.copy() for name, array in reversed(batch.items())}) == digest(batch)
