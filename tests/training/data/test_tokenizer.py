"""Tokenizers: nothing is lost, nothing in a text is taken for a command, the same text gives the same ids."""

import itertools
import json

import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
from hypothesis import given

from moejax import tokenizer as any_tokenizer
from moejax.errors import DataError, UsageError
from moejax.training.data import tokenizer

TEXTS = [b"the cat sat on the mat\n" * 5, "\u00e9t\u00e9 \u6f22\u5b57\r\n\tx = 'y'\n".encode()]
BPE = tokenizer.train_bpe(TEXTS, 300)
BYTES = tokenizer.byte_tokenizer()
text = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


@given(text)
def test_decode_undoes_encode(value):
    for tok in (BPE, BYTES):
        assert tok.decode(tok.encode(value)) == value


def test_bytes_are_one_id_each():
    assert len(BYTES.encode("a\u00e9\u6f22")) == 1 + 2 + 3
    assert BYTES.vocab == tokenizer.MIN_VOCAB == 259


def test_bpe_merges_what_it_saw():
    assert len(BPE.encode(" the")) < 4
    assert BPE.vocab <= 300
    assert tokenizer.train_bpe([b"ab"], 4096).vocab < 300  # a small corpus leaves ids unused


def test_training_twice_gives_the_same_tokenizer():
    assert tokenizer.train_bpe(TEXTS, 300).to_json() == BPE.to_json()


def test_special_names_in_a_text_are_text():
    ids = BPE.encode("<|eos|>")
    assert BPE.eos not in ids
    assert BPE.decode([BPE.bos, *ids, BPE.eos]) == "<|eos|>"


def test_documents_are_encoded_as_if_alone():
    together = list(BPE.encode_documents(TEXTS))
    assert [ids.tolist() for ids in together] == [BPE.encode(value.decode()) for value in TEXTS]
    assert together[0].dtype == np.int32


def test_long_documents_are_cut_without_loss(monkeypatch):
    monkeypatch.setattr(any_tokenizer, "PIECE", 16)
    values = ["\u6f22" * 50, "a line\n" * 20, "", "x" * 16, "\u00e9" * 8 + "y"]
    encoded = tokenizer.byte_tokenizer().encode_documents([value.encode() for value in values])
    assert [BYTES.decode(ids.tolist()) for ids in encoded] == values


def test_documents_are_encoded_as_they_come(monkeypatch):
    monkeypatch.setattr(any_tokenizer, "PIECE", 16)
    endless = itertools.repeat(b"some text")
    assert next(BYTES.encode_documents(endless)).size == 9


def test_truncation_in_the_file_is_ignored(tmp_path):
    backend = tokenizers.Tokenizer.from_str(BYTES.to_json())
    backend.enable_truncation(500)
    backend.enable_padding(length=400)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizer.load(tmp_path / "tokenizer.json")
    assert len(loaded.encode("x" * 600)) == 600 and len(loaded.encode("x")) == 1


def test_save_and_load(tmp_path):
    BPE.save(tmp_path / "tokenizer.json")
    loaded = tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.bos, loaded.eos, loaded.to_json()) == (1, 2, BPE.to_json())
    assert loaded.encode("the <|eos|>") == BPE.encode("the <|eos|>")
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "BPE"


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"model\.vocab=258 is too small .* need 259"):
        tokenizer.identity("bpe", 258)
    with pytest.raises(UsageError, match=r"no tokenizer at 'nowhere\.json'"):
        tokenizer.identity("nowhere.json", 4096)
    BPE.save(tmp_path / "tokenizer.json")
    with pytest.raises(UsageError, match=rf"model\.vocab=270 is smaller than the {BPE.vocab} ids"):
        tokenizer.identity(str(tmp_path / "tokenizer.json"), 270)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match="not a readable"):
        tokenizer.load(tmp_path / "broken.json")


def test_a_tokenizer_that_loses_text_is_refused():
    lossy = json.loads(BPE.to_json())
    lossy["normalizer"] = {"type": "Lowercase"}
    lossy["pre_tokenizer"]["add_prefix_space"] = True
    with pytest.raises(DataError, match="gives every text back unchanged"):
        tokenizer.from_json(json.dumps(lossy))


def test_a_tokenizer_without_frame_tokens_is_refused():
    with pytest.raises(DataError, match="no token to begin and end a document"):
        tokenizer.from_json(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
