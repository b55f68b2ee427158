"""What is written down of a run's data, and the refusal to continue the run with other data."""

import dataclasses

from moejax.errors import DataError
from moejax.training.data.corpus import Corpus

SHOWN = 5  # files named for each kind of change


def manifest(corpus: Corpus) -> dict:
    """What `data.json` of a run directory holds."""
    return {
        "fingerprint": corpus.fingerprint,
        "settings": corpus.settings,
        "train_rows": corpus.train.num_rows,
        "train_targets": corpus.train.num_targets,
        "held_out_targets": corpus.held_out.num_targets,
        "held_out_bytes": corpus.held_out_bytes,
        "errors": dataclasses.asdict(corpus.errors),
        "files": [dataclasses.asdict(file) for file in corpus.files],
    }


def check_unchanged(old: dict, new: Corpus) -> None:
    """Refuse to continue a run that began with the data of `old` (a `manifest`) if `new` gives other rows.

    Raises:
      DataError: with both fingerprints and the files and settings that differ.
    """
    if old.get("fingerprint") == new.fingerprint:
        return
    differences = _changed_files(old.get("files", []), manifest(new)["files"])
    differences += _changed_settings(old.get("settings", {}), new.settings)
    differences = differences or ["no file and no setting; the order of the files or their reading does"]
    shown = "".join(f"\n  {line}" for line in differences)
    raise DataError(
        f"the data is not what this run began with: fingerprint {str(old.get('fingerprint'))[:16]} then, "
        f"{new.fingerprint[:16]} now. What differs:{shown}\n"
        "Restore the data and its settings, or start a new run in another --workdir"
    )


def _changed_files(old: list[dict], new: list[dict]) -> list[str]:
    before = {file["path"]: file["sha256"] for file in old}
    after = {file["path"]: file["sha256"] for file in new}
    changes = {
        "added": [path for path in after if path not in before],
        "removed": [path for path in before if path not in after],
        "changed": [path for path in after if path in before and before[path] != after[path]],
    }
    lines = []
    for change, paths in changes.items():
        lines += [f"{change}: {path}" for path in paths[:SHOWN]]
        if len(paths) > SHOWN:
            lines.append(f"{change}: {len(paths) - SHOWN} more files")
    return lines


def _changed_settings(old: dict, new: dict) -> list[str]:
    return [
        f"{name}: {old.get(name)!r} then, {new.get(name)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
