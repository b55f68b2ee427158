"""F25: files that are made to harm are refused, in words, and do nothing."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import hostile
from tests.house.tree import ROOT

PEAK_MIB = 256
REFUSED = ("CheckpointError: ", "UsageError: ")


def opened(kind: str, folder: Path) -> tuple[list[dict], dict]:
    """What the child says of everything in `folder`, and its memory; it must end by itself."""
    child = [sys.executable, "-W", "ignore", str(ROOT / "tests/faults/hostile_child.py"), kind, str(folder)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder.parent / "home"), "XLA_FLAGS": ""}
    ended = subprocess.run(child, cwd=folder.parent, env=environ, capture_output=True, text=True, timeout=280)
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, f"{rows[-1:]}\n{ended.returncode}\n{ended.stderr[-3000:]}"
    return rows[:-1], rows[-1]


def names_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_headers_with_a_few_bytes_changed(tmp_path, count):
    folder = tmp_path / "files"
    folder.mkdir()
    for i, content in enumerate(hostile.mutants(random.Random(count), count)):
        (folder / f"{i:05}").write_bytes(content)
    rows, memory = opened("files", folder)
    assert len(rows) == count
    strange = [row for row in rows if not row["outcome"].startswith(("opened", REFUSED[0]))]
    assert strange == []
    assert 0 < sum(row["outcome"] == "opened" for row in rows) < count / 2
    assert memory["peak_mib"] < PEAK_MIB, memory
    assert names_below(tmp_path) == {"files", "files/as_model", "files/as_model/model.safetensors"}


def test_traps(tmp_path):
    folder, canary = tmp_path / "models", tmp_path / "canary"
    folder.mkdir()
    hostile.traps(folder, canary)
    before = names_below(tmp_path)
    rows, memory = opened("models", folder)
    assert len(rows) >= 55
    fallen_for = [row for row in rows if not row["outcome"].startswith(REFUSED)]
    assert fallen_for == []
    assert memory["peak_mib"] - memory["start_mib"] < PEAK_MIB, memory
    assert names_below(tmp_path) == before
    assert not canary.exists()


def test_the_canary_sings(tmp_path):
    """The trap works: who does unpickle it makes the file."""
    import pickle

    pickle.loads(pickle.dumps(hostile.Touch(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
