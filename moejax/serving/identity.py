"""What a model is, so that a job is resumed only with the model that began it."""

import zlib

import jax
import numpy as np


def crc32(model) -> str:
    """A checksum over the config, the tokenizer, and every number of every parameter; reads all of them."""
    words = repr((model.cfg, model.context)) + (model.tokenizer.to_json() if model.tokenizer else "")
    value = zlib.crc32(words.encode())
    for path, leaf in jax.tree.leaves_with_path((model.params, model.sides)):
        array = np.ascontiguousarray(leaf)
        value = zlib.crc32(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(array.reshape(-1).view(np.uint8), value)
    return f"{value:08x}"
