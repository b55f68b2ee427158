"""The public functions of moejax, as `import moejax` shows them."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax import overrides
from moejax.analysis.routing.trace import RoutingTrace
from moejax.config import ModelConfig, Run, require
from moejax.model import forward as decoder
from moejax.model_io import load, save
from moejax.seams import Batch, Output
from moejax.serving.chat import chat
from moejax.serving.generate import Completion, generate
from moejax.serving.model import Model
from moejax.tracing import TraceRecorder, routing_trace

__all__ = [
    "Completion",
    "Model",
    "RoutingTrace",
    "TraceRecorder",
    "chat",
    "forward",
    "generate",
    "init",
    "load",
    "routing_trace",
    "save",
    "train",
]

_forward = jax.jit(decoder.forward, static_argnames="m")


def init(key: jax.Array, cfg: ModelConfig) -> Any:
    """Fresh parameters of the model `cfg`; the same for the same key.

    Args:
      key: from `jax.random.key`.
      cfg: of the model, for example `configs.base.tiny().model`.

    Returns:
      Nested dicts of arrays in `cfg.param_dtype`; below `group<i>` they have a leading dim over its layers.

    >>> import jax, moejax
    >>> from configs import base
    >>> params = moejax.init(jax.random.key(0), base.tiny().model)
    >>> params["embed"].shape  # vocabulary, width
    (272, 64)
    """
    kind = type(cfg).__name__
    require(isinstance(cfg, ModelConfig), f"cfg is a {kind}; give a ModelConfig, such as run.model")
    return decoder.init(key, cfg)


def forward(
    params: Any, cfg: ModelConfig, tokens: Batch | jax.Array | Sequence[Sequence[int]], *, sides=None
) -> Output:
    """Run the model over whole texts; compiled once per shape.

    Args:
      params: from `init`, `load` or training.
      cfg: of the same model.
      tokens: ids [B, T] of B texts, or B lists of ids of any lengths, or a Batch for packed texts.
      sides: `Model.sides`; None adds nothing to the routing.

    Returns:
      Output. `logits` f32[B, T, V] are the unnormalised log-probabilities (nats) of the token that follows
      each position, `hidden_BTD` what they were computed from. Past the end of a text they mean nothing.

    Raises:
      UsageError: the tokens are not whole numbers [B, T], or not ids of the model.

    >>> import jax, moejax
    >>> from configs import base
    >>> cfg = base.tiny().model
    >>> params = moejax.init(jax.random.key(0), cfg)
    >>> moejax.forward(params, cfg, [[1, 104, 105], [1, 104]]).logits.shape
    (2, 3, 272)
    """
    batch = tokens if isinstance(tokens, Batch) else _as_batch(tokens, cfg.vocab)
    return _forward(params, cfg, batch, sides=sides)


def train(run: Run, workdir: str | os.PathLike):
    """Train `run` in the directory `workdir`, or go on where an earlier call stopped.

    Args:
      run: the whole run, for example `configs.base.tiny()`.
      workdir: everything that the run writes is in it; `load` reads it.

    Returns:
      `moejax.training.loop.Result`: step, bits per held-out byte, seconds.

    Raises:
      UsageError: the run cannot work on these devices.
      DataError: there is no text, or other text than the run began with.
      CheckpointError: every checkpoint is damaged, or belongs to another model.
      RetryError: another process trains there, or a signal stopped this one; the same call goes on.
      NonFiniteError: too many updates in a row were not finite.
      StorageError: the disk is full or failed.

    >>> import moejax
    >>> from configs import base
    >>> moejax.train(base.tiny(), "runs/tiny").step  # doctest: +SKIP
    20
    """
    from moejax.training.loop import train as train_resolved  # the data layer takes a second to import
    from moejax.training.run_lock import RunLock

    with RunLock(workdir):
        return train_resolved(overrides.resolve(run, "python", {}), workdir)


def _as_batch(tokens, vocab: int) -> Batch:
    """Each text is a document of its own from position 0."""
    if isinstance(tokens, jax.Array):  # its values may not be known yet
        whole = tokens.ndim == 2 and jnp.issubdtype(tokens.dtype, jnp.integer)
        require(whole, f"tokens is {tokens.dtype} {tokens.shape}; give whole numbers [B, T]")
        token_BT, size_B = tokens, jnp.full(len(tokens), tokens.shape[1])
    else:
        token_BT, size_B = _padded(tokens, vocab)
    pos_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1], dtype=jnp.int32), token_BT.shape)
    valid_BT = pos_BT < size_B[:, None]
    return Batch(token_BT, pos_BT, valid_BT.astype(jnp.int32), valid_BT)


def _padded(texts, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """(token_BT, size_B) of texts of any lengths."""
    rows = [np.asarray(text) for text in texts]
    for i, row in enumerate(rows):
        whole = row.ndim == 1 and (row.size == 0 or np.issubdtype(row.dtype, np.integer))
        require(whole, f"tokens[{i}] is {row.dtype} {row.shape}; give whole numbers [T] for each text")
        require(np.all((row >= 0) & (row < vocab)), f"tokens[{i}] has ids outside 0 to {vocab - 1}")
    size_B = np.array([len(row) for row in rows], np.int32)
    token_BT = np.zeros((len(rows), size_B.max(initial=0)), np.int32)
    for row, token_T in zip(rows, token_BT, strict=True):
        token_T[: len(row)] = row
    return token_BT, size_B
