"""Models written as GGUF files: the same model again, and what another reader finds."""

import dataclasses
import warnings

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moejax
from moejax.errors import StorageError, UsageError
from moejax.interop.gguf.architectures import hub_model
from moejax.interop.gguf.expand import expand
from moejax.interop.gguf.source import GgufFile
from moejax.interop.hf import directory
from moejax.model import forward as decoder
from moejax.tokenizer import from_json
from moejax.training.data.tokenizer import byte_tokenizer, train_bpe
from tests.interop.gguf import models

V = 300
DENSE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
DENSE |= {"head_dim": 32, "intermediate_size": 96, "vocab_size": V, "max_position_embeddings": 64}
DENSE |= {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}}
MIXTRAL = DENSE | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"rope_type": "llama3", "rope_theta": 5e5, "original_max_position_embeddings": 8192}
CONFIGS = {
    "llama": DENSE | {"model_type": "llama", "tie_word_embeddings": True},
    "llama3": DENSE | {"model_type": "llama", "rope_parameters": LLAMA3},
    "mixtral": MIXTRAL,
    "qwen3": DENSE | {"model_type": "qwen3"},
    "qwen3_moe": DENSE
    | {"model_type": "qwen3_moe", "moe_intermediate_size": 96, "num_experts": 4, "num_experts_per_tok": 2}
    | {"norm_topk_prob": True},
}


def made(config: dict, dtype: str = "float32", tokenizer=None) -> moejax.Model:
    description = directory.describe(config, "config.json")
    m = dataclasses.replace(description.model, dtype=dtype, param_dtype=dtype)
    return moejax.Model(
        m,
        decoder.init(jax.random.key(0), m),
        tokenizer or byte_tokenizer(),
        description.context,
        origin=config,
    )


def same_bits(found, wanted) -> None:
    for own, other in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True):
        assert own.dtype == other.dtype
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_read_back_as_it_was(tmp_path, name, dtype):
    model, told = made(CONFIGS[name], dtype), []
    moejax.save(model, tmp_path / "m.gguf", format="gguf", progress=told.append)
    found = moejax.load(tmp_path / "m.gguf")
    assert (found.cfg, found.context) == (model.cfg, model.context)
    same_bits(found, model)
    assert told == list(hub_model(tmp_path / "m.gguf")[1].file.names())
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_another_reader_finds_the_same_tensors(tmp_path):
    """Rows that rotate together are neighbours there, and the experts of a layer one tensor."""
    model = made(MIXTRAL)
    moejax.save(model, tmp_path / "m.gguf", format="gguf")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert {name: tensor.data.shape for name, tensor in found.items()} == {
        name: (V, *shape[1:]) if shape[0] == models.V else shape
        for name, shape in models.shapes("mixtral").items()
    }
    block = jax.tree.map(lambda leaf: leaf[1], model.params["group0"]["block0"])
    up_EFD = np.swapaxes(block["ffn"]["experts"]["up"], 1, 2)
    np.testing.assert_array_equal(found["blk.1.ffn_up_exps.weight"].data, up_EFD)
    k_GAD = np.moveaxis(block["attn"]["k"], 0, -1)
    np.testing.assert_array_equal(found["blk.1.attn_k.weight"].data[32 + 2 * 5 + 1], k_GAD[1, 5 + 16])


def test_eight_bits(tmp_path):
    model = made(MIXTRAL)
    moejax.save(model, tmp_path / "m.gguf", format="gguf", tensor_type="Q8_0")
    file = hub_model(tmp_path / "m.gguf")[1].file
    kinds = {name: tensor.kind.name for name, tensor in file.tensors.items() if name.startswith("blk.0")}
    exact = {"blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "blk.0.ffn_gate_inp.weight"}
    assert {name for name, kind in kinds.items() if kind == "F32"} == exact
    assert {kind for name, kind in kinds.items() if name not in exact} == {"Q8_0"}
    found = moejax.load(tmp_path / "m.gguf")
    for own, other in zip(jax.tree.leaves(found.params), jax.tree.leaves(model.params), strict=True):
        assert np.abs(own - other).max() <= np.abs(other).max() / 127 * (0.5 + 127 * 2**-11)


def test_rows_that_are_no_whole_blocks_stay_exact(tmp_path):
    model = made(MIXTRAL | {"intermediate_size": 80})
    moejax.save(model, tmp_path / "m.gguf", format="gguf", tensor_type="Q8_0")
    file = hub_model(tmp_path / "m.gguf")[1].file
    assert file.tensors["blk.0.ffn_down_exps.weight"].kind.name == "F32"
    assert file.tensors["blk.0.ffn_up_exps.weight"].kind.name == "Q8_0"


@pytest.mark.parametrize("trained", [False, True])
def test_the_tokenizer_is_in_the_file(tmp_path, trained):
    text = "The quick brown fox  jumps over 1234 lazy dogs.\n\n\u00e9t\u00e9 \U0001f600 <|eos|>"
    tokenizer = train_bpe([text.encode() * 9], V) if trained else byte_tokenizer()
    tokenizer = dataclasses.replace(tokenizer, chat_template="{{ messages[0].content }}")
    model = made(CONFIGS["llama"], tokenizer=tokenizer)
    moejax.save(model, tmp_path / "m.gguf", format="gguf")
    found = moejax.load(tmp_path / "m.gguf").tokenizer
    assert found.encode_prompt(text) == tokenizer.encode_prompt(text)
    assert (found.bos, found.eos, found.add_bos) == (tokenizer.bos, tokenizer.eos, tokenizer.add_bos)
    assert found.chat_template == tokenizer.chat_template
    assert found.decode(found.encode(text)) == text


def test_a_file_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr("moejax.interop.gguf.expand.NUMBERS", 100)
    tokens = {"tokenizer.ggml.tokens": ["a", "bc"], "tokenizer.ggml.scores": [0.5, -1.5]}
    own = {"blk.1.ffn_up_exps.weight": models.KIND.Q8_0}
    path = models.write(tmp_path / "m.gguf", "mixtral", metadata=tokens, kinds=own)
    file = GgufFile(path)
    expand(file, tmp_path / "whole.gguf")
    found = GgufFile(tmp_path / "whole.gguf")
    assert {tensor.kind.name for tensor in found.tensors.values()} == {"F32"}
    assert list(found.metadata["tokenizer.ggml.tokens"]) == ["a", "bc"]
    assert found.metadata["llama.block_count"] == 2 and found.metadata["general.file_type"] == 0
    for name in file.names():
        np.testing.assert_array_equal(found.read(name), file.read(name))


SENTENCEPIECE = """{"version": "1.0", "truncation": null, "padding": null,
"added_tokens": [{"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
"normalized": false, "special": true}, {"id": 1, "content": "<s>", "single_word": false, "lstrip": false,
"rstrip": false, "normalized": false, "special": true}, {"id": 2, "content": "</s>", "single_word": false,
"lstrip": false, "rstrip": false, "normalized": false, "special": true}],
"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}, "pre_tokenizer": null,
"post_processor": null, "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern":
{"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
{"type": "Strip", "content": " ", "start": 1, "stop": 0}]}, "model": {"type": "BPE", "dropout": null,
"unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
"byte_fallback": true, "ignore_merges": false, "vocab": VOCAB,
"merges": [["a", "b"], ["b", "a"], ["\u2581", "a"], ["ab", "a"], ["\u2581", "ab"]]}}"""


def test_a_tokenizer_of_pieces(tmp_path):
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts += ["a", "b", "\u2581", "ab", "ba", "\u2581a", "aba", "\u2581ab"]
    vocab = ", ".join(f'"{text}": {id}' for id, text in enumerate(texts))
    tokenizer = from_json(SENTENCEPIECE.replace("VOCAB", "{" + vocab + "}"))
    moejax.save(made(CONFIGS["llama"], tokenizer=tokenizer), tmp_path / "m.gguf", format="gguf")
    found = moejax.load(tmp_path / "m.gguf").tokenizer
    for text in ("ab ab", "aba bab a", "ba\u00e9aab", "  abab"):
        assert found.encode(text) == tokenizer.encode(text), text
        assert found.decode(found.encode(text)) == text


REFUSED = [
    (
        {"model_type": "gemma3_text", "rope_parameters": None},
        {},
        "a gemma3_text cannot be written as GGUF; llama, mixtral, qwen3",
    ),
    (
        {"model_type": "mixtral", "sliding_window": 8},
        {},
        "sliding_window=8 of this model has no place in a GGUF",
    ),
    (
        {"model_type": "llama", "rope_parameters": LLAMA3 | {"high_freq_factor": 8.0}},
        {},
        "high_freq_factor=8.0 has no place",
    ),
    ({"model_type": "llama"}, {"tensor_type": "Q4_0"}, "tensor_type='Q4_0' is not one of F32, BF16, Q8_0"),
]


@pytest.mark.parametrize(("config", "options", "message"), REFUSED)
def test_what_a_file_cannot_say_is_refused_by_name(tmp_path, config, options, message):
    model = made(DENSE | config)
    with pytest.raises(UsageError, match=message):
        moejax.save(model, tmp_path / "m.gguf", format="gguf", **options)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moejax.interop.gguf.write.os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        moejax.save(made(MIXTRAL), tmp_path / "m.gguf", format="gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_computes_the_same(tmp_path, name):
    """Up to the float16 in which llama.cpp keeps keys and values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llama_cpp = pytest.importorskip("llama_cpp")
    model = made(CONFIGS[name])
    model = dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf * 2, model.params))
    moejax.save(model, tmp_path / "m.gguf", format="gguf")
    ids = np.random.default_rng(0).integers(3, 259, 40)
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, logits_all=True, verbose=False)
    theirs.eval(ids.tolist())
    ours_TV = moejax.forward(model.params, model.cfg, jnp.asarray(ids[None])).logits[0]
    assert np.abs(ours_TV).max() > 2
    assert np.abs(ours_TV - theirs.scores[:40]).mean() < 1e-3 * np.abs(ours_TV).max()
