"""What a conversion needs beside the model that it makes: a gigabyte of the size of a real one, measured."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from moejax.interop.hf import directory
from moejax.interop.safetensors.source import SafetensorsDir
from moejax.interop.safetensors.write import write_safetensors
from moejax.interop.source import TensorInfo
from moejax.model import forward as decoder
from tests.house.tree import ROOT
from tests.model_files.conftest import CONFIG

LARGE = CONFIG | {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
}
SPARE_BYTES = 1 << 30
CHILD = """
import pathlib, sys
from moejax import __main__ as door
code = door.main(["convert", *sys.argv[1:]])
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
print(next(line for line in lines if line.startswith("VmHWM")).split()[1])
sys.exit(code)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """1.2 GB of bfloat16, made tensor by tensor."""
    root = tmp_path_factory.mktemp("large") / "hub"
    root.mkdir()
    (root / "config.json").write_text(json.dumps(LARGE))
    m = directory.describe(LARGE, "test").model
    places = directory.families.named("mixtral", "test").tensor_map(m).places(m, decoder.specs(m))
    noise = np.random.default_rng(0).integers(0, 2**14, 1 << 20, np.uint16).view(ml_dtypes.bfloat16)

    def make(shape):
        return np.resize(noise, shape)

    info = lambda place: TensorInfo(place.shape, np.dtype(ml_dtypes.bfloat16), "")
    tensors = ((place.name, info(place), lambda place=place: make(place.shape)) for place in places)
    write_safetensors(root, tensors, max_shard_bytes=300 << 20)
    return root


@pytest.mark.nightly
@pytest.mark.parametrize("form", ["hf", "gguf", "moejax"])
def test_peak(large, tmp_path, form):
    source = SafetensorsDir(large)
    sizes = [math.prod(source.info(name).shape) * 2 for name in source.names()]
    assert sum(sizes) > 1 << 30
    arguments = [str(large), str(tmp_path / "x"), f"--format={form}"]
    child = [sys.executable, "-W", "ignore", "-c", CHILD, *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(child, env=environ, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    peak = int(ended.stdout.split()[-1]) * 1024
    assert peak <= sum(sizes) + 2 * max(sizes) + SPARE_BYTES, f"{peak:,} for a model of {sum(sizes):,} bytes"
    if form == "hf":
        result = SafetensorsDir(tmp_path / "x")
        for name in source.names():
            np.testing.assert_array_equal(source.read(name).view("u2"), result.read(name).view("u2"))
