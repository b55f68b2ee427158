"""What a run directory says about the run: its settings, its data, its tokenizer.

    config.json     every setting with where it came from
    data.json       fingerprint, files with hashes, records that could not be read
    tokenizer.json  in the format of the `tokenizers` library
"""

import dataclasses
import json
import pathlib

import jax

from moejax import overrides
from moejax.config import Run
from moejax.errors import CheckpointError, DataError
from moejax.training import durable
from moejax.training.data import manifest
from moejax.training.data.corpus import Corpus

# A change of these makes another model or another sequence of batches; all else may change on resume.
FIXED = ("model.", "train.seq_len", "train.batch_rows", "train.seed", "train.losses")


def open_run(run_dir: pathlib.Path, resolved: overrides.Resolved, corpus: Corpus) -> None:
    """Write the three files, or check that an earlier run's agree.

    Raises:
      CheckpointError: the model or the order of the data changed; lists each value then and now.
      DataError: the text changed.
    """
    if jax.process_index() != 0:
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    check_config(run_dir, resolved.config)
    data_path = run_dir / "data.json"
    if data_path.exists():
        manifest.check_unchanged(_read(data_path, DataError), corpus)
    durable.write_file(data_path, json.dumps(manifest.manifest(corpus), indent=1).encode())
    durable.write_file(run_dir / "tokenizer.json", corpus.tokenizer.to_json().encode())
    durable.write_file(run_dir / "config.json", overrides.dumps(resolved).encode())
