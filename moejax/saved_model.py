"""A model as a directory of moejax's own: the one that training keeps its run in, or one of `save`.

It holds config.json (the settings), tokenizer.json (in the format of the `tokenizers` library) and
checkpoints/ (parameters, hashed in a manifest). `save` adds origin.json and origin/: what a model from
elsewhere brought along, so that it can go back there.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from moejax import durable, overrides, recipes, tokenizer
from moejax import specs as sp
from moejax.config import CheckpointConfig, ModelConfig, Run, require
from moejax.errors import CheckpointError, UsageError
from moejax.interop.json_file import read_json
from moejax.model import forward as decoder
from moejax.model.stack import no_side
from moejax.serving.model import Model
from moejax.tokenizer import Tokenizer
from moejax.training.checkpoint import Checkpointer
from moejax.training.objective import sides_of

TEXT_SETTINGS = ("bos", "eos", "more_ends", "add_bos", "chat_template")  # of a Tokenizer
EXPECTED = (
    "a model is a directory with config.json, tokenizer.json and checkpoints/, from train.py or moejax.save"
)


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """The settings of a model without the run that made it."""

    model: ModelConfig
    context: int  # tokens of prompt and completion together


def load(path: Path, strategies: Iterable[type] = (), step: int | None = None) -> Model:
    """Read the model of a training run, or one that `save` wrote; every file is checked against its hash.

    Args:
      path: the directory.
      strategies: frozen dataclasses of your own that its config may name, beside those of moejax.
      step: of which checkpoint; None takes the newest one that is whole.

    Raises:
      UsageError: there is no such directory, it holds no model, or its config names an unknown strategy.
      CheckpointError: there is no checkpoint yet, or none that is whole and fits the config.
    """
    config = read_config(path, strategies)
    model = config.model
    params = sp.shapes(decoder.specs(model))
    checkpoints = Checkpointer(path, CheckpointConfig(verify="full"), read_only=True)
    if isinstance(config, SavedModel):
        state = _restore(checkpoints, {"params": params, "sides": _abstract_sides(checkpoints)}, step)
        sides, context = _unflatten_sides(model, state["sides"]), config.context
    else:
        losses = config.train.losses
        loss_state = jax.eval_shape(lambda: tuple(loss.init(model) for loss in losses))
        state = _restore(checkpoints, {"params": params, "loss_state": loss_state}, step)
        sides, context = sides_of(model, losses, state["loss_state"]), config.train.seq_len
    sides = sides if jax.tree.leaves(sides) else None
    text, origin = read_origin(path)
    return Model(model, state["params"], text, context, sides, origin)


def save(model: Model, path: Path) -> None:
    """Write `model` to a new directory, which `load` reads; it appears whole or not at all.

    Raises:
      StorageError: the disk is full or failed.
      CheckpointError: the parameters are not those that `model.cfg` declares.
    """
    sp.check(model.params, decoder.specs(model.cfg))
    with durable.appearing(path) as temp:
        temp.mkdir()
        # Threads that found the disk full would go on after this function, and make their files again.
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((model.params, model.sides)))
        durable.require_room(path.parent, size)
        config = overrides.resolve(SavedModel(model.cfg, model.context), "moejax.save", {})
        durable.write_file(temp / "config.json", overrides.dumps(config).encode())
        _write_origin(model, temp)
        sides = _flatten_sides(model.sides)
        meta = {"sides": {name: [side.shape, str(side.dtype)] for name, side in sides.items()}}
        with Checkpointer(temp, CheckpointConfig(max_failures=1, on_disk_full="stop")) as checkpoints:
            checkpoints.save(0, {"params": model.params, "sides": sides}, meta)
            checkpoints.wait()


def read_config(path: Path, strategies: Iterable[type] = ()) -> Run | SavedModel:
    """The settings of the run or model in a directory.

    Raises:
      UsageError: it holds neither, or its config names an unknown strategy.
    """
    require(path.is_dir(), f"there is no directory {str(path)!r}; {EXPECTED}")
    wanted = ["config.json"] if (path / "origin.json").is_file() else ["config.json", "tokenizer.json"]
    missing = [name for name in wanted if not (path / name).is_file()]
    require(not missing, f"{str(path)!r} has no {' and no '.join(missing)}; {EXPECTED}")
    known = [*recipes.strategies(), SavedModel, *strategies]
    try:
        config = overrides.loads((path / "config.json").read_text(encoding="utf-8"), known).config
    except (UsageError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path / 'config.json'}: {error}; {EXPECTED}") from error
    require(
        isinstance(config, Run | SavedModel),
        f"{path / 'config.json'} describes a {type(config).__name__}, neither a run nor a model; {EXPECTED}",
    )
    return config


def _write_origin(model: Model, path: Path) -> None:
    text, settings = model.tokenizer, {}
    if text is not None:
        durable.write_file(path / "tokenizer.json", text.to_json().encode())
        settings = {name: getattr(text, name) for name in TEXT_SETTINGS}
        (path / "origin").mkdir()
        for name, content in text.files.items():
            durable.write_file(path / "origin" / name, content)
    origin = {"config": dict(model.origin), "tokenizer": settings}
    durable.write_file(path / "origin.json", json.dumps(origin, indent=2).encode())


def read_origin(path: Path) -> tuple[Tokenizer | None, dict[str, Any]]:
    """(tokenizer, config.json of the hub) that a model came with; a run has a tokenizer and nothing else."""
    if not (path / "origin.json").is_file():
        return tokenizer.load(path / "tokenizer.json"), {}
    origin = read_json(path / "origin.json")
    if not origin["tokenizer"]:
        return None, origin["config"]
    settings = {**origin["tokenizer"], "more_ends": tuple(origin["tokenizer"]["more_ends"])}
    files = {file.name: file.read_bytes() for file in (path / "origin").iterdir()}
    text = tokenizer.load(path / "tokenizer.json")
    return dataclasses.replace(text, **settings, files=files), origin["config"]


def _restore(checkpoints: Checkpointer, wanted: Any, step: int | None):
    restored = checkpoints.restore(wanted, step=step)
    if restored is None:
        raise CheckpointError("there is no checkpoint in the directory yet; train until one is saved")
    return restored.state


def _flatten_sides(sides) -> dict[str, jax.Array]:
    """The arrays of `sides` by group, block and field: `0/0/prefer_BE`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(sides)
    return {sp.path_name(path): array for path, array in flat}


def _abstract_sides(checkpoints: Checkpointer) -> dict[str, jax.ShapeDtypeStruct]:
    if not checkpoints.steps():
        return {}
    sides = checkpoints.restore_meta()["sides"]
    return {name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (shape, dtype) in sides.items()}


def _unflatten_sides(m: ModelConfig, flat: dict[str, jax.Array]):
    sides = [list(group) for group in no_side(m)]
    for name, array in flat.items():
        group, block, field = name.split("/")
        sides[int(group)][int(block)] = sides[int(group)][int(block)].replace(**{field: array})
    return tuple(map(tuple, sides))
