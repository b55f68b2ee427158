"""What a run directory says about the run: its settings, its data, its tokenizer.

    config.json     every setting with where it came from
    data.json       fingerprint, files with hashes, records that could not be read
    tokenizer.json  in the format of the `tokenizers` library
"""

import json
import pathlib

import jax

from moejax.errors import CheckpointError
from moejax.overrides import Resolved, dumps
from moejax.records import to_dict
from moejax.training import durable
from moejax.training.data import manifest
from moejax.training.data.corpus import Corpus

# A change of these makes another model or another sequence of batches; all else may change on resume.
FIXED = ("model.", "train.seq_len", "train.batch_rows", "train.seed")


def open_run(run_dir: pathlib.Path, resolved: Resolved, corpus: Corpus) -> None:
    """Write the three files, or check that an earlier run's agree.

    Raises:
      CheckpointError: the model or the order of the data changed; lists each value then and now.
      DataError: the text changed.
    """
    if jax.process_index() != 0:
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    config_path, data_path = run_dir / "config.json", run_dir / "data.json"
    if config_path.exists():
        check_config(_read(config_path)["config"], to_dict(resolved.config), run_dir)
    if data_path.exists():
        manifest.check_unchanged(_read(data_path), corpus)
    durable.write_file(data_path, json.dumps(manifest.manifest(corpus), indent=1).encode())
    durable.write_file(run_dir / "tokenizer.json", corpus.tokenizer.to_json().encode())
    durable.write_file(config_path, dumps(resolved).encode())


def check_config(old: dict, new: dict, run_dir: pathlib.Path) -> None:
    """Refuse a change of what the run's checkpoints and data depend on; both configs as `to_dict` gives them."""
    before, after = dict(_flat(old)), dict(_flat(new))
    changed = [
        f"  config.{path} was {before.get(path, 'absent')}, is now {after.get(path, 'absent')}"
        for path in sorted(before | after)
        if path.startswith(FIXED) and before.get(path) != after.get(path)
    ]
    if changed:
        raise CheckpointError(
            f"{run_dir} was begun with another config:\n" + "\n".join(changed) + "\n"
            "Set these back to go on, or start a new run in another --workdir"
        )


def _flat(node, path: str = ""):
    """(dotted path, plain value) pairs of nested dicts and lists."""
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _read(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}), so it cannot be checked that this is the same run; "
            "restore the file, or start a new run in another --workdir"
        ) from error
