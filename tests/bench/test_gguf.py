"""The benchmark of agreement on GGUF files: its arithmetic by hand, and the whole of it with a stand-in."""

import contextlib
import dataclasses
import json
import math

import jax
import numpy as np
import pytest

import moejax
from moejax.bench import gguf
from moejax.errors import UsageError
from moejax.interop.hf import directory
from moejax.model import forward as decoder
from moejax.training.data.tokenizer import byte_tokenizer

CONFIG = {
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


def test_two_positions_by_hand():
    """Ours says 1/2, 1/2, then 1/4, 3/4; theirs 3/4, 1/4, then 1/4, 3/4; the last target is unknown."""
    ours, theirs = np.log([[0.5, 0.5], [0.25, 0.75]]), np.log([[0.75, 0.25], [0.25, 0.75]]) + 7
    found = gguf.compare(ours, theirs, np.array([1, -1]))
    assert (found.positions, found.targets, found.same) == (2, 1, 2)
    assert found.divergence == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert (found.ours, found.theirs) == pytest.approx((math.log(2), math.log(4)))
    (agree, margin, ratio, divergence, *perplexities, apart) = (m.value for m in gguf._measures("a", found))
    assert agree == 1 and perplexities == pytest.approx([2, 4])
    assert divergence == pytest.approx(found.divergence / 2) and margin == pytest.approx(0.005 / divergence)
    assert apart == pytest.approx(0.5) and ratio == pytest.approx(0.01)


@pytest.fixture
def model(tmp_path):
    """A model with its file."""
    description = directory.describe(CONFIG, "config.json")
    params = decoder.init(jax.random.key(0), description.model)
    model = moejax.Model(description.model, params, byte_tokenizer(), description.context, origin=CONFIG)
    moejax.save(model, tmp_path / "m.gguf", format="gguf")
    return model


def stand_in(model, noise: float):
    """A peer that is moejax, but for noise."""

    @contextlib.contextmanager
    def peer(path, texts):
        def answers():
            for ids_T in texts:
                logits_TV = np.asarray(moejax.forward(model.params, model.cfg, ids_T[None]).logits[0])
                logits_TV = logits_TV + noise * np.random.default_rng(0).normal(size=logits_TV.shape)
                yield from np.split(logits_TV, range(gguf.ROWS, len(logits_TV), gguf.ROWS))

        yield {"version": "none"}, answers()

    return peer


@pytest.mark.parametrize(("noise", "holds"), [(0.0, True), (0.5, False)])
def test_the_claim_is_of_the_whole_text(tmp_path, model, noise, holds, monkeypatch):
    monkeypatch.setattr(gguf, "ROWS", 10)
    (tmp_path / "text.txt").write_text("The quick brown fox. " * 40)
    cfg = gguf.GgufAgreement((str(tmp_path / "m.gguf"),), str(tmp_path / "text.txt"), tokens=100, window=33)
    texts = gguf.texts_of(model, (tmp_path / "text.txt").read_text(), cfg)
    assert texts.shape == (3, 33) and set(texts[:, 0]) == {model.tokenizer.bos}
    np.testing.assert_array_equal(
        texts[:, 1:].ravel(), model.tokenizer.encode("The quick brown fox. " * 40)[:96]
    )
    report = gguf.run(cfg, stand_in(model, noise))
    measures = {measure.name: measure for measure in report.measures}
    assert measures["m: same best token"].n == measures["m: mean divergence, in F32"].n == 99
    assert report.holds is holds
    json.dumps(report.to_dict())


def test_without_llama_cpp(tmp_path, model):
    cfg = gguf.GgufAgreement((str(tmp_path / "m.gguf"),), "", python="/bin/false")
    report = gguf.run(cfg)
    assert report.holds is None and "pip install llama-cpp-python" in report.notes[0]


def test_a_text_that_is_too_short(tmp_path, model):
    cfg = gguf.GgufAgreement((), "", tokens=100, window=33)
    with pytest.raises(UsageError, match=r"the text has 4 tokens, --tokens asks for 100"):
        gguf.texts_of(dataclasses.replace(model), "abcd", cfg)
