"""A model out to the hub's layout and back, on a mesh too; what is damaged is refused by name."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import moejax
from configs import base
from moejax.errors import CheckpointError, StorageError, UsageError
from moejax.interop import gguf_file, hub_directory
from moejax.training.checkpoint import Checkpointer
from moejax.training.data.tokenizer import byte_tokenizer

PROMPTS = ["def ", "class A:"]


@pytest.fixture(scope="module")
def model():
    cfg = base.tiny().model
    return moejax.Model(cfg, moejax.init(jax.random.key(0), cfg), byte_tokenizer(), context=64)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The model as a directory of three shards."""
    path = tmp_path_factory.mktemp("hub") / "model"
    moejax.save(model, path, format="hf", max_shard_bytes=400_000)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    """The same directory, to be damaged."""
    path = tmp_path / "model"
    path.mkdir()
    for file in saved.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def assert_same(params, wanted):
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


def edit(path, **fields):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | fields))


def test_there_and_back(model, saved):
    again = moejax.load(saved)
    assert_same(again.params, model.params)
    assert (again.cfg, again.context) == (model.cfg, model.context)
    assert again.tokenizer.encode_prompt("a<|eos|>") == model.tokenizer.encode_prompt("a<|eos|>")
    assert moejax.generate(again, PROMPTS, max_tokens=4) == moejax.generate(model, PROMPTS, max_tokens=4)
    assert len(list(saved.glob("model-0000?-of-*.safetensors"))) == 3


def test_what_it_came_with_goes_back(saved, tmp_path):
    """hub -> moejax -> hub: every file is the same, byte for byte."""
    edit_free = moejax.load(saved)
    moejax.save(edit_free, tmp_path / "own")
    moejax.save(moejax.load(tmp_path / "own"), tmp_path / "hub", format="hf", max_shard_bytes=400_000)
    files = {file.name: file.read_bytes() for file in saved.iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "hub").iterdir()} == files


def test_transformers_reads_it(model, saved):
    from tests.interop import parity

    _, transformers = parity.libraries()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager").eval()
    token_BT = np.random.default_rng(0).integers(0, model.cfg.vocab, (2, 12), np.int32)
    found = moejax.forward(model.params, model.cfg, token_BT.tolist()).logits
    parity.assert_close(found, parity.logits(theirs, token_BT))
    text = transformers.AutoTokenizer.from_pretrained(saved)
    assert text(PROMPTS[1])["input_ids"] == list(model.tokenizer.encode_prompt(PROMPTS[1]))


def test_parameters_go_to_their_places_on_a_mesh(model, saved):
    mesh = jax.make_mesh((2, 2, 2), ("fsdp", "expert", "tensor"))
    with jax.set_mesh(mesh):
        loaded = moejax.load(saved)
    assert_same(jax.tree.map(np.asarray, loaded.params), jax.tree.map(np.asarray, model.params))
    gate_LEDF = loaded.params["group0"]["block0"]["ffn"]["experts"]["gate"]
    assert gate_LEDF.sharding.spec == jax.P(None, "expert", "fsdp", "tensor")
    assert gate_LEDF.addressable_shards[0].data.size == gate_LEDF.size // 8


def test_a_dtype_may_be_chosen(model, saved):
    half = moejax.load(saved, dtype="bfloat16")
    assert (half.cfg.dtype, half.cfg.param_dtype) == ("bfloat16", "bfloat16")
    wanted = jax.tree.map(lambda x: np.asarray(x).astype(jax.numpy.bfloat16), model.params)
    assert_same(half.params, wanted)


def test_without_a_tokenizer_prompts_are_ids(copy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    bare = moejax.load(copy)
    assert bare.tokenizer is None
    with pytest.raises(UsageError, match="no tokenizer; give token ids"):
        moejax.generate(bare, ["text"])
    (found,) = moejax.generate(bare, [[1, 100]], max_tokens=3)
    assert (len(found.tokens), found.text) == (3, "")


DAMAGES = {
    "unknown family": (
        lambda path: edit(path / "config.json", model_type="mixtrall", architectures=["Mixtrall"]),
        UsageError,
        r"config\.json: the family 'mixtrall' is not known here.*mixtral",
    ),
    "unknown field": (
        lambda path: edit(path / "config.json", hash_layers=2),
        UsageError,
        r"config\.json has fields that are not known for this family: hash_layers=2",
    ),
    "another width": (
        lambda path: edit(path / "config.json", intermediate_size=32),
        CheckpointError,
        r"tensor 'model\.layers\.0\.block_sparse_moe\.experts\.0\.w1\.weight' of .*safetensors is "
        r"\(64, 64\), the config asks for \(32, 64\)",
    ),
    "fewer layers": (
        lambda path: edit(path / "config.json", num_hidden_layers=1),
        CheckpointError,
        r"tensor 'model\.layers\.1\..*' of .*safetensors has no place in the config",
    ),
    "more experts": (
        lambda path: edit(path / "config.json", num_local_experts=16),
        CheckpointError,
        r"tensor 'model\.layers\.0\.block_sparse_moe\.experts\.10\.w1\.weight' is missing",
    ),
    "a shard cut short": (
        lambda path: (path / "model-00002-of-00003.safetensors").write_bytes(
            (path / "model-00002-of-00003.safetensors").read_bytes()[:-100]
        ),
        CheckpointError,
        r"model-00002-of-00003\.safetensors",
    ),
    "a shard that is not there": (
        lambda path: (path / "model-00002-of-00003.safetensors").unlink(),
        CheckpointError,
        r"model-00002-of-00003\.safetensors",
    ),
    "an index that leaves its directory": (
        lambda path: edit(
            path / "model.safetensors.index.json", weight_map={"lm_head.weight": "../other.safetensors"}
        ),
        CheckpointError,
        r"\.\./other\.safetensors.* is no plain name",
    ),
}


@pytest.mark.parametrize(("damage", "error", "said"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_not_whole_is_refused_by_name(copy, damage, error, said, monkeypatch):
    damage(copy)
    monkeypatch.setattr(jax, "make_array_from_callback", lambda *_: pytest.fail("a tensor was read before"))
    with pytest.raises(error, match=said):
        moejax.load(copy)


def test_a_model_of_no_family_is_not_written(model, tmp_path):
    (group,), (block,) = model.cfg.groups, model.cfg.groups[0].blocks
    odd = dataclasses.replace(block, ffn=dataclasses.replace(block.ffn, activation="relu"))
    cfg = dataclasses.replace(model.cfg, groups=(dataclasses.replace(group, blocks=(odd,)),))
    with pytest.raises(UsageError, match="of no family that the hub knows"):
        moejax.save(dataclasses.replace(model, cfg=cfg), tmp_path / "odd", format="hf")
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_taken_is_left_alone(model, saved):
    with pytest.raises(UsageError, match="exists already"):
        moejax.save(model, saved, format="hf")
    with pytest.raises(UsageError, match="format='onnx' is not one of moejax, hf, gguf"):
        moejax.save(model, saved / "new", format="onnx")


WRITERS = {
    "moejax": (Checkpointer, "wait"),
    "hf": (hub_directory, "write_safetensors"),
    "gguf": (gguf_file, "write_gguf"),
}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_could_not_be_written_leaves_nothing(model, tmp_path, monkeypatch, form, error):
    def fails(*_, **__):
        raise error("enough")

    monkeypatch.setattr(*WRITERS[form], fails)
    with pytest.raises(StorageError if error is OSError else error, match="enough"):
        moejax.save(model, tmp_path / "new", format=form)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_left_as_it_is(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"has 1,000 bytes free, [\d,]+ are needed"):
        moejax.save(model, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float64", "bf16"])
def test_a_dtype_that_is_not_computed_in_is_refused(saved, dtype):
    with pytest.raises(UsageError, match=f"dtype='{dtype}' is not one of 'float32', 'bfloat16'"):
        moejax.load(saved, dtype=dtype)
