"""Turning tensors: hand numbers, parts of them, and what is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base
from moejax import specs as sp
from moejax.errors import CheckpointError
from moejax.interop.hf import mixtral
from moejax.interop.hf.tensor_map import Turn
from moejax.interop.source import TensorInfo
from moejax.model import forward as decoder


class InMemory:
    """A TensorSource of arrays that are there."""

    def __init__(self, tensors):
        self.tensors = tensors

    def names(self):
        return self.tensors.keys()

    def info(self, name):
        return TensorInfo(self.tensors[name].shape, self.tensors[name].dtype, "some.safetensors")

    def read(self, name, index=()):
        return self.tensors[name][index].copy()


def test_dims_move_and_join():
    w_DHA = np.arange(2 * 3 * 2).reshape(2, 3, 2)  # D = 2, H = 3, A = 2
    (found,) = [Turn("q", ("q",), "DHA->(HA)D").forth([w_DHA])]
    # row h * 2 + a, column d holds w[d, h, a]
    np.testing.assert_array_equal(found, [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]])


def test_two_leaves_end_to_end_or_in_turns():
    gate_DF, up_DF = np.array([[1, 2]]), np.array([[3, 4]])  # D = 1, F = 2
    ends = Turn("gate_up", ("gate", "up"), "DF->FD")
    turns = dataclasses.replace(ends, interleaved=True)
    np.testing.assert_array_equal(ends.forth([gate_DF, up_DF]), [[1], [2], [3], [4]])
    np.testing.assert_array_equal(turns.forth([gate_DF, up_DF]), [[1], [3], [2], [4]])


EQUATIONS = ["DHA->(HA)D", "HAD->D(HA)", "DFE->E(FD)", "ABC->CBA", "ABC->(ABC)"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_part_of_any_leaf_comes_back(data):
    equation = data.draw(st.sampled_from(EQUATIONS))
    dims = [data.draw(st.integers(1, 4)) for _ in range(3)]
    ours, _, theirs = equation.partition("->")
    first = theirs.strip("(")[0]  # the dim that leaves may differ in is the outermost of the first joined one
    count = data.draw(st.integers(1, 3))
    interleaved = data.draw(st.booleans())
    shapes = []
    for _ in range(count):
        own = list(dims)
        if not interleaved:
            own[ours.index(first)] = data.draw(st.integers(1, 4))
        shapes.append(tuple(own))
    turn = Turn("t", tuple("abc"[:count]), equation, 0, interleaved)
    values = [np.random.default_rng(i).normal(size=shape) for i, shape in enumerate(shapes)]
    whole = turn.forth(values)
    assert whole.shape == turn.shape(shapes)
    part = data.draw(st.integers(0, count - 1))
    wanted = []
    for length in shapes[part]:
        start = data.draw(st.integers(0, length - 1))
        wanted.append(slice(start, data.draw(st.integers(start + 1, length))))
    found = turn.back(lambda index: whole[index], part, shapes, wanted)
    np.testing.assert_array_equal(found, values[part][tuple(wanted)])


def files():
    """(model, its tensors as a Mixtral's, the map)."""
    m = base.tiny().model
    table, specs = mixtral.tensor_map(m), decoder.specs(m)
    tensors = {place.name: np.ones(place.shape, np.float32) for place in table.places(m, specs)}
    return m, tensors, table, specs


def test_every_parameter_has_its_place():
    m, tensors, table, specs = files()
    table.check(InMemory(tensors), m, specs)
    # 2 layers with 8 experts of 3 matrices, 4 of attention, 2 norms and a router; embedding and last norm
    assert len(tensors) == 2 * (8 * 3 + 4 + 2 + 1) + 2
    assert sum(tensor.size for tensor in tensors.values()) == sp.count(specs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.norm.weight"), "tensor 'model.norm.weight' is missing"),
        (lambda t: t.update(extra=np.ones(3)), "tensor 'extra' of some.safetensors has no place in the conf"),
        (
            lambda t: t.update({"model.norm.weight": np.ones((65,), np.float32)}),
            r"tensor 'model.norm.weight' of some.safetensors is \(65,\), the config asks for \(64,\)",
        ),
        (  # transformers would untie them
            lambda t: t.update({"lm_head.weight": 2 * t["model.embed_tokens.weight"]}),
            "tensors 'lm_head.weight' and 'model.embed_tokens.weight' differ, but the config says .* tied",
        ),
    ],
)
def test_other_tensors_are_refused(change, said):
    m, tensors, table, specs = files()
    change(tensors)
    with pytest.raises(CheckpointError, match=said):
        table.check(InMemory(tensors), m, specs)


def test_copies_are_ignored():
    m, tensors, table, specs = files()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    table.check(InMemory(tensors), m, specs)
