"""Trees as named leaves, and what a diff of two of them says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.training import leaves
from moejax.training.manifest import Tensor


def test_names_are_paths():
    tree = {"params": [{"down": jnp.zeros((2, 3))}, None], "step": np.int64(4), "empty": {}}
    assert leaves.describe(leaves.named_leaves(tree)) == (
        Tensor("params/0/down", (2, 3), "float32"),
        Tensor("step", (), "int64"),
    )


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="'a/b'"):
        leaves.named_leaves({"a/b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}})


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_are_stored_as_numbers(impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 4)
    stored = leaves.stored_form(keys)
    assert stored.dtype == jnp.uint32
    abstract = jax.ShapeDtypeStruct(keys.shape, keys.dtype)
    assert leaves.stored_form(abstract).shape == stored.shape
    back = leaves.original_form(stored, abstract)
    assert back.dtype == keys.dtype
    np.testing.assert_array_equal(jax.random.key_data(back), stored)


def test_diff_by_hand():
    saved = [Tensor("a", (4, 4, 32, 16), "float32"), Tensor("b", (1,), "int32"), Tensor("same", (), "bool")]
    wanted = [Tensor("a", (4, 8, 32, 16), "float32"), Tensor("c", (2,), "int8"), Tensor("same", (), "bool")]
    assert leaves.diff(saved, wanted) == [
        "a is float32 (4, 4, 32, 16), the config asks for float32 (4, 8, 32, 16)",
        "b is int32 (1,) in the checkpoint, the config asks for no such leaf",
        "c is not in the checkpoint, the config asks for int8 (2,)",
    ]
    assert leaves.diff(saved, saved) == []


def test_a_long_diff_is_cut():
    saved = [Tensor(f"w{n:02}", (), "float32") for n in range(50)]
    lines = leaves.diff(saved, [])
    assert len(lines) == 21 and lines[-1] == "... and 30 more"
