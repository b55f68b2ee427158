"""The table of turns, by hand."""

import dataclasses

import numpy as np
import pytest

from moejax.errors import CheckpointError
from moejax.interop.hf.tensor_map import TensorMap, Turn, layers
from moejax.specs import Constant, Spec


def test_a_turn_by_hand():
    ours = np.arange(12).reshape(2, 3, 2)  # D=2, H=3, A=2
    theirs = np.array([[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]])  # [(H A), D]
    turn = Turn("w", ("q",), "DHA->(HA)D")
    np.testing.assert_array_equal(turn.forth([ours]), theirs)
    np.testing.assert_array_equal(turn.back(theirs, [ours.shape])[0], ours)


def test_two_leaves_lie_end_to_end():
    gate, up = np.array([[[1, 2]], [[3, 4]]]), np.array([[[5, 6]], [[7, 8]]])  # E=2, D=1, F=2
    theirs = np.array([[[1], [2], [5], [6]], [[3], [4], [7], [8]]])  # [E, 2F, D]
    turn = Turn("w", ("gate", "up"), "EDF->EFD", 1)
    np.testing.assert_array_equal(turn.forth([gate, up]), theirs)
    for ours, back in zip((gate, up), turn.back(theirs, [gate.shape, up.shape]), strict=True):
        np.testing.assert_array_equal(back, ours)


def test_a_tensor_of_another_shape_is_refused():
    with pytest.raises(CheckpointError, match=r"'w' is \(2, 2\), the config asks for \(6, 2\)"):
        Turn("w", ("q",), "DHA->(HA)D").back(np.zeros((2, 2)), [(2, 3, 2)])


@dataclasses.dataclass(frozen=True)
class Stack:
    blocks: tuple
    repeat: int


@dataclasses.dataclass(frozen=True)
class Model:
    groups: tuple


M = Model((Stack(("a",), 1), Stack(("b", "c"), 2)))
MAP = TensorMap((Turn("end", ("norm",), "D->D"),), (Turn("layer{layer}", ("w",), "DE->ED"),))


def weights(first: int, repeat: int):
    return np.arange(first, first + 2 * repeat, dtype=np.float32).reshape(repeat, 1, 2)


def spec(*shape: int) -> Spec:
    return Spec(shape, (None,) * len(shape), Constant(0.0))


PARAMS = {
    "norm": np.ones(2, np.float32),
    "group0": {"block0": {"w": weights(0, 1)}},
    "group1": {"block0": {"w": weights(10, 2)}, "block1": {"w": weights(20, 2)}},
}
SPECS = {
    "norm": spec(2),
    "group0": {"block0": {"w": spec(1, 1, 2)}},
    "group1": {"block0": {"w": spec(2, 1, 2)}, "block1": {"w": spec(2, 1, 2)}},
}


def test_layers_are_numbered_as_a_token_passes_them():
    assert layers(M) == [
        ("group0/block0", 0),
        ("group1/block0", 0),
        ("group1/block1", 0),
        ("group1/block0", 1),
        ("group1/block1", 1),
    ]
    tensors = MAP.forth(PARAMS, M)
    assert [tensors[f"layer{i}"].ravel().tolist() for i in range(5)] == [
        [0, 1],
        [10, 11],
        [20, 21],
        [12, 13],
        [22, 23],
    ]


def test_there_and_back():
    back = MAP.back(MAP.forth(PARAMS, M), SPECS, M)
    np.testing.assert_equal(back, PARAMS)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layer2": None}, "'layer2' is missing"),
        ({"other": np.zeros(2, np.float32)}, "'other' has no place"),
        ({"end": np.ones(2)}, "'end' is float64, the config asks for float32"),
        ({"end": np.ones(3, np.float32)}, "is .3,., the config asks for .2,."),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    tensors = {name: value for name, value in (MAP.forth(PARAMS, M) | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        MAP.back(tensors, SPECS, M)
