"""A trace is one record and one file; a file that is none says what is wrong with it."""

import dataclasses
import json

import numpy as np
import pytest

from moejax.analysis.routing.trace import ARRAYS, FORMAT, RoutingTrace
from moejax.errors import DataError, UsageError
from tests.analysis.routing import traces


def same(a: RoutingTrace, b: RoutingTrace) -> bool:
    """Equal in every field, dtypes included."""
    for field in dataclasses.fields(RoutingTrace):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            if x.dtype != y.dtype or not np.array_equal(x, y):
                return False
        elif x != y:
            return False
    return True


def test_by_hand():
    # three tokens, four experts, two slots; 4 is an empty slot
    trace = traces.one_layer([[0, 1], [3, 4], [4, 4]], 4, gate=[[[0.2, 0.8], [1.0, 0.0], [0.0, 0.0]]])
    (layer,) = trace.layers()
    assert layer.mask_NE.astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert layer.top_N.tolist() == [0, 3, 4]
    assert layer.slots_per_token == 1.0
    assert layer.count_slots(np.array([0, 1, 1]), 2).tolist() == [[1, 1, 0, 0], [0, 0, 0, 1]]


def test_texts_are_slices():
    trace = traces.one_layer([0, 1, 0, 1, 1], 2, text=[0, 0, 1, 1, 1])
    assert trace.texts() == [slice(0, 2), slice(2, 5)]
    assert trace.num_texts == 2


def test_shares_by_label_by_hand():
    trace = traces.one_layer([0, 0, 1, 1], 2).labelled([0, 0, 0, 2], ("code", "none", "prose"))
    share_CE = trace.share_by_label()[0]
    np.testing.assert_allclose(share_CE, [[2 / 3, 1 / 3], [np.nan, np.nan], [0, 1]])


@pytest.mark.parametrize("full", [True, False])
def test_a_file_gives_the_trace_back(tmp_path, full):
    trace = dataclasses.replace(traces.random(0), name="x\x00\u00e9", step=7)
    trace = (
        trace.labelled(trace.token_N % 2, ("a", "")) if full else dataclasses.replace(trace, score_LNE=None)
    )
    trace.save(tmp_path / "t.npz")
    assert same(RoutingTrace.load(tmp_path / "t.npz"), trace)
    again = (tmp_path / "t.npz").read_bytes()
    trace.save(tmp_path / "t.npz")
    assert (tmp_path / "t.npz").read_bytes() == again
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


def stored(path, **changes):
    """The arrays of a small trace on disk, some replaced; None takes one out."""
    traces.random(0).save(path)
    with np.load(path) as arrays:
        found = {name: arrays[name] for name in arrays.files} | changes
    np.savez(path, **{name: value for name, value in found.items() if value is not None})


def words(**changes):
    return np.array(json.dumps({"format": FORMAT, "labels": [], "name": "", "step": None} | changes))


DAMAGE = {
    "it has no expert_LNK": {"expert_LNK": None},
    "token_N is float64": {"token_N": np.zeros(40)},
    "pos_N has shape": {"pos_N": np.zeros(39, np.int32)},
    "expert_LNK has shape": {"expert_LNK": np.zeros(3, np.uint8)},
    "an expert is 200": {"expert_LNK": np.full((2, 40, 2), 200, np.uint8)},
    "one after the other": {"text_N": np.arange(40, 0, -1, dtype=np.int32)},
    "a label is none of": {"label_N": np.ones(40, np.int16)},
    "its format is 'other'": {"meta": words(format="other")},
    "its words are": {"meta": words(step="x")},
    "no word of a trace": {"meta": None},
    "holds .*meta": {"meta": np.zeros(3)},
    "there are no tokens": {
        name: np.zeros([0 if d == "N" else 2 for d in dims], dtypes[0])
        for name, (dtypes, dims) in ARRAYS.items()
        if "N" in dims and "E" not in dims
    },
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_says_what_is_wrong(tmp_path, what):
    path = tmp_path / "t.npz"
    stored(path, **DAMAGE[what])
    with pytest.raises(DataError, match=rf"{path} is no routing trace: .*{what}.*; trace the model again"):
        RoutingTrace.load(path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x00\xff{", b"hello", b"\x93NUMPY\x01\x00"])
def test_a_foreign_file_says_so(tmp_path, data):
    (tmp_path / "t.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"t\.npz cannot be read as \.npz"):
        RoutingTrace.load(tmp_path / "t.npz")


def test_a_torn_file_says_so(tmp_path):
    traces.random(0).save(tmp_path / "t.npz")
    data = (tmp_path / "t.npz").read_bytes()
    for size in (len(data) // 3, len(data) - 30):
        (tmp_path / "t.npz").write_bytes(data[:size])
        with pytest.raises(DataError, match="cannot be read as"):
            RoutingTrace.load(tmp_path / "t.npz")


def test_an_array_in_another_file_format_is_refused(tmp_path):
    np.save(tmp_path / "t.npy", np.zeros(3))
    with pytest.raises(DataError, match="cannot be read"):
        RoutingTrace.load(tmp_path / "t.npy")


def test_wrong_paths_are_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        RoutingTrace.load(tmp_path / "none.npz")
    with pytest.raises(UsageError, match="there is no directory"):
        traces.random(0).save(tmp_path / "none" / "t.npz")
    with pytest.raises(UsageError, match="is a directory"):
        traces.random(0).save(tmp_path)
