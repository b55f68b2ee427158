"""What a run directory says about the run: its settings, its data, its tokenizer.

config.json     every setting with where it came from
data.json       fingerprint, files with hashes, records that could not be read
tokenizer.json  in the format of the `tokenizers` library
"""

import json
import pathlib
from collections.abc import Callable

import jax

from moejax import durable
from moejax.errors import CheckpointError, MoejaxError
from moejax.overrides import Resolved, dumps
from moejax.records import to_dict
from moejax.training.data import manifest
from moejax.training.data.corpus import Corpus
from moejax.training.peers import Peers
from moejax.training.report.run_files import flatten

# A change of these makes another model or another sequence of batches; all else may change on resume.
FIXED = ("model.", "train.seq_len", "train.batch_rows", "train.seed")
# These make the same model with other memory and speed.
FREE = ("model.scan", "model.remat")


def check(run_dir: pathlib.Path, resolved: Resolved, corpus: Corpus) -> None:
    """Compare with the files of an earlier run in `run_dir`, if there was one; all processes take part.

    Raises:
      CheckpointError: the model or the order of the data changed; lists each value then and now.
      DataError: the text changed.
    """

    def compare():
        config_path, data_path = run_dir / "config.json", run_dir / "data.json"
        if config_path.exists():
            check_config(_read(config_path)["config"], to_dict(resolved.config), run_dir)
        if data_path.exists():
            manifest.check_unchanged(_read(data_path), corpus)

    first_decides(compare)


def write(run_dir: pathlib.Path, resolved: Resolved, corpus: Corpus) -> None:
    """The three files, by the first process."""
    if jax.process_index() != 0:
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    durable.write_file(run_dir / "data.json", json.dumps(manifest.manifest(corpus), indent=1).encode())
    durable.write_file(run_dir / "tokenizer.json", corpus.tokenizer.to_json().encode())
    durable.write_file(run_dir / "config.json", dumps(resolved).encode())


def first_decides(action: Callable[[], None]) -> None:
    """Do `action` in the first process; if it ends in an error, all processes do, and none waits for it."""
    peers, error = Peers(), None
    if peers.is_first:
        try:
            action()
        except Exception as caught:
            error = caught
    code = peers.from_first(getattr(error, "exit_code", MoejaxError.exit_code) if error else 0)
    if error:
        raise error
    if code:
        kind = next((cls for cls in MoejaxError.__subclasses__() if cls.exit_code == code), MoejaxError)
        raise kind("the first process refused this run; it says why")


def check_config(old: dict, new: dict, run_dir: pathlib.Path) -> None:
    """Refuse a change of what the run's checkpoints and data depend on; configs as `to_dict` gives them."""
    before, after = flatten(old), flatten(new)
    fixed = [path for path in sorted(before | after) if path.startswith(FIXED) and path not in FREE]
    changed = [
        f"  config.{path.removesuffix('.type')} was {then}, is now {now}"
        for path in fixed
        if (then := before.get(path, "absent")) != (now := after.get(path, "absent"))
    ]
    if changed:
        raise CheckpointError(
            f"{run_dir} was begun with another config:\n" + "\n".join(changed) + "\n"
            "Set these back to go on, or start a new run in another --workdir"
        )


def _read(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}), so it cannot be checked that this is the same run; "
            "restore the file, or start a new run in another --workdir"
        ) from error
