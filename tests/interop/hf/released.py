"""Releases that transformers does not know: files written here, against a forward pass in numpy."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from moejax import api
from tests.interop import parity


def write(oracle, config: dict, path: pathlib.Path, scale: float = 0.2) -> dict[str, np.ndarray]:
    """A release of random weights, far from a small start; returns the tensors."""
    rng = np.random.default_rng(0)

    def draw(name, shape):
        value = rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.normal(0, scale, shape)
        return value.astype(np.float32)

    tensors = {name: draw(name, shape) for name, shape in oracle.shapes(config).items()}
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return tensors


def check(oracle, config: dict, path: pathlib.Path, scale: float = 0.2) -> None:
    """The same logits, whole and by token, and the files back."""
    tensors = write(oracle, config, path, scale)
    m, params, description = parity.opened(path)
    token_BT = np.random.default_rng(0).integers(0, m.vocab, (parity.B, parity.T), np.int32)
    wide = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    wanted_BTV = np.stack([oracle.logits(wide, config, token_T) for token_T in token_BT])
    assert np.abs(wanted_BTV).max() > 0.5, "logits of this size say nothing; choose another scale"
    parity.assert_close(api.forward(params, m, jnp.asarray(token_BT)).logits, wanted_BTV, 1e-5)
    parity.assert_close(parity.decoded(params, m, token_BT), wanted_BTV, 1e-5)
    parity.check_files(path, m, params, description)
