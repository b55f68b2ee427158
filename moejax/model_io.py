"""Models in and out, whatever they are kept in: what `moejax.load` and `moejax.save` do."""

import enum
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from moejax import saved_model
from moejax.config import require
from moejax.interop import json_file, safe_files
from moejax.serving.model import Model


class Kind(enum.StrEnum):
    """What a model is kept in."""

    MOEJAX = "moejax"  # the directory of a run, or of `save`
    HF = "hf"  # the layout of the Hugging Face hub
    GGUF = "gguf"


def load(
    path: str | os.PathLike,
    *,
    dtype: str | None = None,
    offline: bool = False,
    keep_quantised: bool = False,
    strategies: Iterable[type] = (),
    step: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Model:
    """Read a model: of a training run, of `save`, of the Hugging Face hub, or of a GGUF file.

    With a mesh (`jax.set_mesh`) the parameters of a foreign model go straight to their places on it. Nothing
    that a file names is ever imported or run.

    Args:
      path: a directory, a GGUF file, or a name: "smollm2", "organisation/model" or
        "organisation/model@revision".
      dtype: of a foreign model: float32 or bfloat16, to round its tensors to and to compute in; None takes
        that of its tensors.
      offline: look for a name only in the cache of the hub.
      keep_quantised: of a GGUF file: weights in 8 or 4 bits (Q8_0, Q4_0, Q4_1) stay so in memory and become
        numbers when used, on one device; such a model can be run, but not trained or saved.
      strategies: frozen dataclasses of your own that the config of a run may name, beside those of moejax.
      step: of a run: which checkpoint; None takes the newest one that is whole.
      progress: is told the name of every parameter that is complete.

    Raises:
      UsageError: there is no such model, its family is unknown, or its config asks for what is not there.
      CheckpointError: a file is damaged, or holds other tensors than its config says; nothing is half loaded.

    >>> import moejax
    >>> model = moejax.load("runs/default")  # doctest: +SKIP
    >>> model.cfg.num_layers, model.context  # doctest: +SKIP
    (4, 128)
    >>> moejax.load("smollm2").cfg.num_layers  # doctest: +SKIP
    30
    """
    place = Path(path) if os.path.exists(path) else _found(os.fspath(path), offline)
    kind = kind_of(place)
    require(
        kind is Kind.MOEJAX or (step is None and not strategies),
        f"step and strategies are for models of train.py and moejax.save; {place} is a {kind} model",
    )
    require(
        kind is not Kind.MOEJAX or dtype is None,
        f"{place} is computed in the dtype of its config.json; dtype={dtype!r} is for foreign models",
    )
    require(
        dtype in (None, "float32", "bfloat16"),
        f"dtype={dtype!r} is not one of 'float32', 'bfloat16' and None, which keeps that of the tensors",
    )
    require(
        kind is Kind.GGUF or not keep_quantised,
        f"keep_quantised=True is for GGUF files; {place} is a {kind} model",
    )
    if kind is Kind.MOEJAX:
        return saved_model.load(place, strategies, step)
    options = {"keep_quantised": True} if keep_quantised else {}
    return _foreign(kind).load(place, dtype, progress, **options)


def save(
    model: Model,
    path: str | os.PathLike,
    *,
    format: str = "moejax",
    family: str | None = None,
    max_shard_bytes: int = 5 << 30,
    tensor_type: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write `model` to a new place, which `load` reads; it appears whole or not at all.

    Args:
      format: moejax (a directory), hf (a directory as the Hugging Face hub has them) or gguf (a file).
      family: of hf and gguf: the model_type; None takes the one the model came from, else one that fits.
      max_shard_bytes: of hf: where the next file begins.
      tensor_type: of gguf: F32, BF16 or Q8_0; None keeps the parameters' dtype.
      progress: is told the name of every tensor that is written.

    Raises:
      UsageError: there is something at `path` already, or the model is of no family that the format knows.
      StorageError: the disk is full or failed.
      CheckpointError: the parameters are not those that `model.cfg` declares.

    >>> import jax, moejax, os, tempfile
    >>> from configs import base
    >>> from moejax.training.data.tokenizer import byte_tokenizer
    >>> cfg = base.tiny().model
    >>> model = moejax.Model(cfg, moejax.init(jax.random.key(0), cfg), byte_tokenizer(), context=64)
    >>> path = os.path.join(tempfile.mkdtemp(), "tiny")
    >>> moejax.save(model, path)
    >>> moejax.load(path).cfg == cfg
    True
    """
    path = Path(path).absolute()
    require(not os.path.lexists(path), f"{path} exists already; choose a path where there is nothing yet")
    known = [str(kind) for kind in Kind]
    require(format in known, f"format={format!r} is not one of {', '.join(known)}")
    if format == Kind.MOEJAX:
        saved_model.save(model, path)
    elif format == Kind.HF:
        _foreign(Kind.HF).save(model, path, family, max_shard_bytes, progress)
    else:
        _foreign(Kind.GGUF).save(model, path, family, tensor_type, progress)


def kind_of(path: Path) -> Kind:
    """What the model at `path` is kept in.

    Raises:
      UsageError: there is no model at all.
      CheckpointError: its config.json is damaged.
    """
    if path.is_file():
        require(path.suffix == ".gguf", f"{path} is a file, but no GGUF file; give a directory or a *.gguf")
        return Kind.GGUF
    config = path / "config.json"
    there = os.path.lexists(config)
    require(
        there,
        f"{path} has no config.json, so it holds no model; give the directory of a training run, of "
        "moejax.save or in the layout of the Hugging Face hub, or a *.gguf",
    )
    found = json_file.read_json(safe_files.inside(path, config.name))
    return Kind.HF if "model_type" in found else Kind.MOEJAX


def _foreign(kind: Kind):
    """The module that reads and writes models of others; what it imports takes a second."""
    if kind is Kind.HF:
        from moejax.interop import hub_directory as module
    else:
        from moejax.interop import gguf_file as module
    return module


def _found(name: str, offline: bool) -> Path:
    from moejax.interop import hub

    return hub.find(name, offline=offline)
