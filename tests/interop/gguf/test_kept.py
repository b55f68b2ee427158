"""Models whose weights stay in the blocks of their GGUF file compute what they compute as arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moejax
from moejax import specs as sp
from moejax.errors import CheckpointError, UsageError
from moejax.interop.gguf import kept
from moejax.interop.gguf.architectures import hub_model
from moejax.interop.hf import directory
from moejax.quantised import Quantised, is_quantised
from tests.interop.gguf import models
from tests.interop.gguf.models import KIND


def written(path, model: str, kind, **others):
    """A model whose matrices are of one type, but for `others`."""
    matrices = {
        name
        for name, shape in models.shapes(model, tied=True).items()
        if len(shape) > 1 and "inp" not in name
    }
    return models.write(path, model, tied=True, kinds=dict.fromkeys(matrices, kind) | others)


def opened(path):
    """(config, arrays, the same kept)."""
    config, source = hub_model(path)
    description = directory.describe(config, str(path))
    return *directory.read(source, description), kept.read(source, description, None)[1]


TELLING = (("llama", KIND.Q4_1), ("mixtral", KIND.Q8_0), ("gemma3", KIND.Q4_0))
PAIRS = [
    pytest.param(model, kind, marks=() if (model, kind) in TELLING else pytest.mark.nightly)
    for model in ("llama", "mixtral", "gemma3")
    for kind in kept.FIELDS
]


@pytest.mark.parametrize(("model", "kind"), PAIRS)
def test_the_same_numbers(tmp_path, model, kind):
    m, arrays, found = opened(written(tmp_path / "m.gguf", model, kind))
    quantised = {name: leaf for name, leaf in leaves(found).items() if is_quantised(leaf)}
    names = {"embed", "q", "k", "v", "o", "gate", "up", "down"}
    assert {name.rsplit("/")[-1] for name in quantised} == names
    for name, array in leaves(arrays).items():
        leaf = leaves(found)[name]
        assert leaf.shape == array.shape
        np.testing.assert_allclose(leaf.astype(jnp.float32), array, rtol=1e-6, atol=1e-7)
    bits = 8 if kind == KIND.Q8_0 else 4
    for leaf in quantised.values():
        assert leaf.nbytes <= np.prod(leaf.shape) * (bits + (1 if kind == KIND.Q4_1 else 0.5)) / 8
    tokens = [[3, 1, 4, 1, 5, 9, 2, 6]]
    want = moejax.forward(arrays, m, tokens).logits
    np.testing.assert_allclose(moejax.forward(found, m, tokens).logits, want, rtol=0, atol=1e-5)


def leaves(params) -> dict:
    flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_quantised)
    return {sp.path_name(path): leaf for path, leaf in flat}


def test_a_parameter_whose_layers_differ_is_an_array(tmp_path):
    others = {
        "blk.1.ffn_up.weight": KIND.Q4_1,
        "blk.0.ffn_down.weight": KIND.Q5_0,
        "blk.1.ffn_down.weight": KIND.Q5_0,
    }
    _, arrays, found = opened(written(tmp_path / "m.gguf", "llama", KIND.Q8_0, **others))
    ffn = found["group0"]["block0"]["ffn"]
    assert isinstance(ffn["gate"], Quantised)
    for name in ("up", "down"):
        np.testing.assert_array_equal(ffn[name], arrays["group0"]["block0"]["ffn"][name])


@pytest.fixture
def model(tmp_path):
    """A model that is kept in part."""
    own = {f"blk.{layer}.attn_v.weight": KIND.Q8_0 for layer in range(2)}
    return moejax.load(models.write(tmp_path / "m.gguf", "llama", kinds=own), keep_quantised=True)


def test_it_is_run_but_not_saved(tmp_path, model):
    assert is_quantised(model.params["group0"]["block0"]["attn"]["v"])
    assert moejax.generate(model, [[5, 6, 7]], max_tokens=3)[0].tokens
    for format in ("moejax", "hf", "gguf"):
        with pytest.raises(CheckpointError, match=r"attn/v'\] is kept in few bits"):
            moejax.save(model, tmp_path / format, format=format)


def test_on_one_device_and_of_gguf_files_only(tmp_path, model):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    with jax.set_mesh(mesh), pytest.raises(UsageError, match="keep_quantised=True is for one device"):
        moejax.load(tmp_path / "m.gguf", keep_quantised=True)
    moejax.save(moejax.load(tmp_path / "m.gguf"), tmp_path / "hub", format="hf")
    with pytest.raises(UsageError, match="keep_quantised=True is for GGUF files"):
        moejax.load(tmp_path / "hub", keep_quantised=True)
