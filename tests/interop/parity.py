"""The same files opened by transformers and here: the same logits, whole and by token, and the files back.

What this module needs comes with the extra: pip install moejax[peers].
"""

import json
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moejax import api
from moejax.interop.hf import directory
from moejax.interop.safetensors.source import SafetensorsDir
from moejax.model import forward as decoder
from moejax.seams import Batch

B, T = 2, 12
TOLERANCE = 2e-4  # of the largest logit
_forward = jax.jit(
    lambda params, m, batch, cache: (lambda out: (out.logits_BTV, out.cache))(
        decoder.forward(params, m, batch, cache=cache)
    ),
    static_argnums=1,
)


def libraries():
    """(torch, transformers), or the test is skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's imports
        torch = pytest.importorskip("torch", reason="torch comes with the extra: pip install moejax[peers]")
        name = "transformers"
        transformers = pytest.importorskip(name, reason="comes with the extra: pip install moejax[peers]")
    torch.set_num_threads(1)  # the tensors are tiny, and other tests run beside this one
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


def peer(config, scale: float = 0.2):
    """A random model far from its small start, so that routing, attention, norms and biases matter."""
    torch, transformers = libraries()
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name and name.endswith("weight"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and "inv_freq" not in name and "embed_scale" not in name:
                tensor.normal_(0, scale)
    return model


def check(config, path: pathlib.Path, scale: float = 0.2) -> None:
    """Everything about one configuration of a family that transformers has."""
    model = peer(config, scale)
    model.save_pretrained(path)
    m, params, description = opened(path)
    token_BT = np.random.default_rng(0).integers(0, m.vocab, (B, T), np.int32)
    wanted_BTV = logits(model, token_BT)
    assert np.abs(wanted_BTV).max() > 0.5, "logits of this size say nothing; choose another scale"
    assert_close(api.forward(params, m, jnp.asarray(token_BT)).logits, wanted_BTV)
    assert_close(decoded(params, m, token_BT), wanted_BTV)
    check_files(path, m, params, description)


def check_gradients(config, path: pathlib.Path, bound: float = 1e-3) -> None:
    """Gradients of the mean cross-entropy: maps only move numbers, so gradients can be saved as weights."""
    torch, _ = libraries()
    model = peer(config)
    model.save_pretrained(path / "weights")
    m, params, _ = opened(path / "weights")
    token_BT, target_BT = np.random.default_rng(0).integers(0, m.vocab, (2, B, T), np.int32)
    theirs = model(torch.from_numpy(token_BT).long(), use_cache=False).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(theirs, torch.from_numpy(target_BT).long().flatten()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    model.save_pretrained(path / "gradients")
    _, wanted, _ = opened(path / "gradients")

    def loss(params):
        logits_BTV = api.forward(params, m, jnp.asarray(token_BT)).logits
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits_BTV, target_BT))

    found = jax.jit(jax.grad(loss))(params)
    for (name, own), other in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        limit = bound * np.abs(other).max()
        np.testing.assert_allclose(own, other, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(name))


def opened(path: pathlib.Path):
    """(ModelConfig, parameters, Description) of a directory."""
    description = directory.describe(json.loads((path / "config.json").read_text()), "config.json")
    return *directory.read(SafetensorsDir(path), description), description


def logits(model, token_BT: np.ndarray) -> np.ndarray:
    torch, _ = libraries()
    with torch.no_grad():
        return model(torch.from_numpy(token_BT).long(), use_cache=False).logits.float().numpy()


def decoded(params, m, token_BT: np.ndarray) -> np.ndarray:
    """Logits of a prefill of the first half, then of one token after the other, with a cache."""
    rows, length = token_BT.shape
    cache, found, first = decoder.init_cache(m, rows, length), [], length // 2
    for start, stop in [(0, first), *((at, at + 1) for at in range(first, length))]:
        pos_BT = np.broadcast_to(np.arange(start, stop, dtype=np.int32), (rows, stop - start))
        ones_BT = np.ones_like(pos_BT)
        logits_BTV, cache = _forward(
            params, m, Batch(token_BT[:, start:stop], pos_BT, ones_BT, ones_BT > 0), cache
        )
        found.append(logits_BTV)
    return np.concatenate(found, axis=1)


def check_files(path: pathlib.Path, m, params, description) -> None:
    """The files back: every tensor bit for bit, and a config.json that says the same."""
    source = SafetensorsDir(path)
    back = {name: make() for name, _, make in directory.tensors(description.family, m, params)}
    ignored = {name for name in source.names() if name not in back}
    assert not ignored or (m.tied and ignored == {"lm_head.weight"}), ignored
    for name, tensor in back.items():
        theirs = source.read(name)
        assert tensor.dtype == theirs.dtype, name
        np.testing.assert_array_equal(tensor.view(np.uint8), theirs.view(np.uint8), err_msg=name)
    config = directory.config_json(description.family, m, description.context, description.config)
    again = directory.describe(json.loads(json.dumps(config)), "config.json")
    assert (again.model, again.context) == (description.model, description.context)


def assert_close(found, wanted: np.ndarray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
