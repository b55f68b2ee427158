"""Tokenizers in GGUF metadata: by hand, as the reference reads real files, and damaged."""

import hashlib
import json

import numpy as np
import pytest

from moejax.errors import CheckpointError, UsageError
from moejax.interop import hub
from moejax.interop.gguf.header import read_header
from moejax.interop.tokenizer import gguf
from moejax.interop.tokenizer.pieces import Kind
from moejax.training.data.tokenizer import train_bpe

TEXT = b"the cat sat on the mat, 12 times 345\n" * 5
BPE = train_bpe([TEXT], 300)
STRANGE = (
    *("", " ", "  a   b ", "a\r\nb\r\n\r\n", "\t\tx\t y", "\n\n\n", "don't I'LL we've"),
    *("\u200b\u00a0\x00\x7f",),
    *("\U0001f600\U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea", "<|im_start|>user\nhi<|im_end|>", "<bos>a<eos>"),
    *("\u6f22\u5b57 123456789 \u0661\u0662\u0663", "\u00bd \u00b2 \u2167 e\u0301 \ufb01"),
    *("...!!! --- $$$ <<=>> ~^|", "3.14159e-10 1,000,000", "def f(x):\n    return x  # c\n\n\n    y"),
    *("a" * 100, " " * 50 + "x"),
)  # fmt: skip


def byte_level(pre: str = "gpt-2", **changes) -> dict:
    """The tokenizer BPE as a GGUF file has it."""
    vocab = sorted(BPE.backend.get_vocab().items(), key=lambda item: item[1])
    merges = [" ".join(pair) for pair in json.loads(BPE.to_json())["model"]["merges"]]
    own = {
        "model": "gpt2",
        "pre": pre,
        "tokens": [text for text, _ in vocab],
        "token_type": np.array([Kind.CONTROL] * 3 + [Kind.NORMAL] * (len(vocab) - 3), np.int32),
        "merges": merges,
        "bos_token_id": np.uint32(1),
        "eos_token_id": 2,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (own | changes).items() if value is not None}


def pieces(**changes) -> dict:
    """A vocabulary with scores."""
    rows = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), ("\u2581", -9, 1), ("a", -8, 1), ("b", -7, 1)]
    rows += [("ab", -1, 1), ("\u2581ab", -2, 1), ("<turn>", 0, 4), ("<end_of_turn>", 0, 3)]
    texts, scores, kinds = zip(*rows, strict=True)
    own = {"model": "llama", "tokens": texts, "scores": np.array(scores, np.float32), "token_type": kinds}
    return {f"tokenizer.ggml.{key}": value for key, value in (own | changes).items() if value is not None}


def test_byte_level_ids_are_those_of_the_tokenizer_that_was_written():
    tokenizer = gguf.read(byte_level(), "a.gguf")
    assert (tokenizer.bos, tokenizer.eos, tokenizer.ends, tokenizer.add_bos) == (1, 2, (2,), False)
    for text in (*STRANGE, TEXT.decode()):
        assert tokenizer.encode(text) == BPE.encode(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_rendered("a<|eos|>") == [*BPE.encode("a"), 2]


@pytest.mark.parametrize(
    ("pre", "parts"),
    [
        ("gpt-2", ["it", "'s", " 1234", " x", "!!", "\n\n ", " y"]),
        ("smollm", ["it", "'s", " ", "1", "2", "3", "4", " x", "!!", "\n\n ", " y"]),
        ("llama-bpe", ["it", "'s", " ", "123", "4", " x", "!!\n\n", " ", " y"]),
        ("qwen2", ["it", "'s", " ", "1", "2", "3", "4", " x", "!!\n\n", " ", " y"]),
        ("default", ["it", "'", "s", " ", "123", "4", " x", "!!", "\n\n ", " y"]),
    ],
)
def test_where_a_text_is_cut(pre, parts):
    cut = gguf.read(byte_level(pre), "a.gguf").backend.pre_tokenizer.pre_tokenize_str("it's 1234 x!!\n\n  y")
    assert [part.replace("\u0120", " ").replace("\u010a", "\n") for part, _ in cut] == parts


def test_pieces_are_joined_by_score():
    tokenizer = gguf.read(pieces(), "a.gguf")
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.ends == (2, 9), "a token that ends a turn by its name"
    assert tokenizer.encode_prompt("ab abb") == [1, 7, 7, 5]
    assert gguf.read(pieces(add_space_prefix=False), "a.gguf").encode("ab ab") == [6, 7]
    assert tokenizer.encode_rendered("ab<turn>") == [7, 8]
    assert tokenizer.encode("<s>")[-1] != 1 and tokenizer.encode_rendered("<s>") == [1]


def test_what_a_file_says_of_a_text_is_honoured():
    template = "{{ messages }}"
    said = pieces(bos_token_id=4, eos_token_id=5, add_bos_token=False, eot_token_id=8)
    tokenizer = gguf.read(said | {"tokenizer.chat_template": template}, "a.gguf")
    assert (tokenizer.bos, tokenizer.ends, tokenizer.add_bos) == (4, (5, 8, 9), False)
    assert tokenizer.chat_template == template
    assert gguf.read(byte_level("llama-bpe"), "a.gguf").add_bos
    assert gguf.read(byte_level(bos_token_id=None), "a.gguf").bos is None


@pytest.mark.parametrize(
    ("metadata", "error", "words"),
    [
        ({}, UsageError, "model=None; gpt2 and llama"),
        (pieces(model="t5"), UsageError, "model='t5'"),
        (byte_level("klingon"), UsageError, "pre='klingon'; there are codeshell"),
        (pieces(tokens=None), CheckpointError, "tokens is missing"),
        (pieces(scores=[0.0]), CheckpointError, "scores has 1 entries for 10 tokens"),
        (pieces(tokens=["a"] * 10), CheckpointError, "'a' is there twice"),
        (byte_level(merges=["ab"]), CheckpointError, "'ab' has no space"),
        (byte_level(merges=["q zzz"]), CheckpointError, "the tokenizer is damaged"),
        (pieces(scores=["x"] * 10), CheckpointError, "the tokenizer is damaged"),
    ],
)
def test_what_cannot_be_read_is_refused(metadata, error, words):
    with pytest.raises(error, match=f"a.gguf: .*{words}"):
        gguf.read(metadata, "a.gguf")


def test_a_file_may_have_no_tokenizer():
    assert gguf.read({"tokenizer.ggml.model": "none"}, "a.gguf") is None


def test_ids_outside_the_vocabulary_are_none():
    tokenizer = gguf.read(pieces(bos_token_id=10, eos_token_id=2**31), "a.gguf")
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (None, None, False)


@pytest.mark.parametrize(
    (
        "name",
        "expected",
    ),  # sha256 of what llama.cpp gives for STRANGE (llama-cpp-python 0.3.36, special=False)
    [
        ("smollm2", "a072b3ece3795db058bcb8b5d82eeabc46bb224d025be0d81cbb2b3791d0b07c"),
        ("gemma3-270m", "d014549d07d7c5e3bd186aa2cd17ff30e5e9d20b2b0574b8e1f4adb636bd9be5"),
    ],
)
def test_ids_of_real_files_are_those_of_llama_cpp(name, expected):
    try:
        path = hub.find(name)
    except UsageError as error:
        pytest.skip(str(error))
    tokenizer = gguf.read(read_header(path).metadata, str(path))
    ids = [tokenizer.encode(text) for text in STRANGE]
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == expected
    assert [tokenizer.decode(own) for own in ids] == list(STRANGE)
