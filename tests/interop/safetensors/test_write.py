"""What is written can be read: here, by the safetensors library, and by transformers."""

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from moejax.errors import UsageError
from moejax.interop.safetensors.header import read_header
from moejax.interop.safetensors.source import INDEX, SINGLE, SafetensorsDir
from moejax.interop.safetensors.write import write_safetensors
from moejax.interop.source import TensorInfo

RNG = np.random.default_rng(0)
TENSORS = {
    "a": RNG.normal(size=5).astype(ml_dtypes.bfloat16),
    "b": RNG.normal(size=(3, 4)).astype(np.float32),
    "c": RNG.normal(size=(2, 2)).astype(np.float64),
    "d": np.array(7, np.int8),
    "e": np.zeros((0, 3), np.float32),
    "f \u00e9\n": np.array([True, False]),
}


def outgoing(tensors: dict[str, np.ndarray]):
    for name, array in tensors.items():
        yield name, TensorInfo(array.shape, array.dtype, ""), lambda array=array: array


def same(found: SafetensorsDir, wanted: dict[str, np.ndarray]) -> None:
    assert set(found.names()) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found.read(name), array, strict=True)


def test_a_single_file(tmp_path):
    told = []
    write_safetensors(tmp_path, outgoing(TENSORS), progress=told.append)
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE]
    assert sorted(told) == sorted(TENSORS)
    same(SafetensorsDir(tmp_path), TENSORS)
    entries = read_header(tmp_path / SINGLE)
    assert all(entry.begin % entry.dtype.itemsize == 0 for entry in entries.values())
    library = load_file(tmp_path / SINGLE)
    for name in TENSORS:
        np.testing.assert_array_equal(library[name], TENSORS[name], strict=True)
    with safe_open(tmp_path / SINGLE, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards(tmp_path):
    write_safetensors(tmp_path, outgoing(TENSORS), max_shard_bytes=48)
    shards = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert {path.name for path in tmp_path.iterdir()} == shards | {INDEX}
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 10 + 48 + 32 + 1 + 2
    assert {name: file[6:11] for name, file in index["weight_map"].items()} == {
        "a": "00001",
        "b": "00002",
        "c": "00003",
        "d": "00003",
        "e": "00003",
        "f \u00e9\n": "00003",
    }
    same(SafetensorsDir(tmp_path), TENSORS)


def test_no_tensor_at_all(tmp_path):
    write_safetensors(tmp_path, [])
    assert list(SafetensorsDir(tmp_path).names()) == []
    assert load_file(tmp_path / SINGLE) == {}


def test_one_tensor_in_memory_at_a_time(tmp_path):
    alive = []

    class Counted(np.ndarray):
        def __del__(self):
            alive.remove(1)

    def make():
        alive.append(1)
        assert alive == [1]
        return np.zeros(4).view(Counted)

    info = TensorInfo((4,), np.dtype(float), "")
    write_safetensors(tmp_path, [(str(i), info, make) for i in range(5)])
    assert alive == []


def test_what_cannot_be_written(tmp_path):
    info = TensorInfo((1,), np.dtype("complex64"), "")
    for bad, reason in (
        (("a", info, None), "tensor 'a' is complex64; safetensors has float64, "),
        (("n" * 513, TENSORS["b"], None), "no room for a tensor called 'nnn"),
        (("__metadata__", TENSORS["b"], None), "no room for a tensor called '__meta"),
    ):
        with pytest.raises(UsageError, match=re.escape(reason)):
            write_safetensors(tmp_path, [bad])
    with pytest.raises(UsageError, match="two tensors are called 'b'"):
        write_safetensors(tmp_path, [*outgoing({"b": TENSORS["b"]})] * 2)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"float32 \(3, 4\), but F32 \(4, 3\) was planned"):
        write_safetensors(tmp_path, [("b", TensorInfo((4, 3), np.dtype("f4"), ""), lambda: TENSORS["b"])])


@pytest.mark.parametrize("max_shard_bytes", [5 << 30, 20_000])
def test_transformers_reads_it(tmp_path: Path, max_shard_bytes):
    transformers = pytest.importorskip("transformers", reason="the extra [peers]")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    wanted = transformers.LlamaForCausalLM(config).eval()
    tensors = {name: tensor.detach().numpy() for name, tensor in wanted.state_dict().items()}
    write_safetensors(tmp_path, outgoing(tensors), max_shard_bytes)
    config.save_pretrained(tmp_path)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    for name, tensor in found.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), tensors[name])
