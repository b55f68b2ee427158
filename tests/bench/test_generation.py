"""The benchmark of batch generation: its rates by hand, and the whole of it with a stand-in."""

import dataclasses
import json
import sys

import jax
import pytest

import moejax
from moejax.bench import generation
from moejax.bench.generation_peers import Outcome
from moejax.errors import UsageError
from moejax.interop.hf import directory
from moejax.model import forward as decoder
from moejax.training.data.tokenizer import byte_tokenizer
from tests.bench.test_gguf import CONFIG


@pytest.fixture
def cfg(tmp_path):
    """A model and a text in files."""
    description = directory.describe(CONFIG, "config.json")
    params = decoder.init(jax.random.key(0), description.model)
    model = moejax.Model(description.model, params, byte_tokenizer(), description.context, origin=CONFIG)
    moejax.save(model, tmp_path / "m.gguf", format="gguf")
    (tmp_path / "text.txt").write_text("The quick brown fox. " * 20)
    return generation.tiny(str(tmp_path / "m.gguf"), str(tmp_path / "text.txt"))


def test_rates_by_hand():
    """Two prompts of 10 tokens in all get 4 tokens each: 8 in 4 s against 8 in 8 s and in 16 s."""
    cfg = generation.Generation("", "", prompts=2, new_tokens=4, single_tokens=3, rounds=1)
    texts = [[1, 2, 3, 4], [5, 6, 7, 8]]
    batch = {
        "moejax": [Outcome(1.0, 3.0, texts)],
        "moejax, bfloat16": [Outcome(1.0, 1.0, texts)],
        "transformers in bfloat16, batch 2": [Outcome(2.0, 4.0, texts)],
        "llama.cpp": [Outcome(6.0, 10.0, [[1, 2, 3, 4], [5, 6, 7, 9]])],
        "transformers, batch 2": [Outcome(5.0, 3.0, texts)],
        "transformers, batch 1": [Outcome(12.0, 4.0, texts)],
    }
    single = {name: [Outcome(0.5, 0.25, [[1, 2, 3]])] for name in batch}
    value = {m.name: m.value for m in generation.measures(cfg, batch, single, prompt_tokens=10)}
    assert value["moejax: written, prefill included"] == 2 and value["moejax: prefill"] == 10
    assert value["moejax: decode"] == 2 and value["moejax: decode, one prompt"] == 8
    assert value["speed over llama.cpp"] == 4 and value["speed over transformers' best"] == 2
    assert value["decode speed over transformers' best"] == 1
    assert value["bfloat16: speed over llama.cpp"] == 8
    assert value["bfloat16: speed over transformers' best"] == 3
    assert value["bfloat16: decode speed over transformers' best"] == 4
    assert value["llama.cpp: same texts"] == 0.5 and value["transformers, batch 1: same texts"] == 1


def test_everybody_gets_the_same_prompts(cfg):
    """A stand-in that is slow and writes what moejax.generate does."""
    model, asked = moejax.load(cfg.model), []

    def peer(prompts, new_tokens):
        asked.append((len(prompts), new_tokens))
        model_without_end = dataclasses.replace(model, tokenizer=None)
        done = moejax.generate(model_without_end, prompts, max_tokens=new_tokens)
        return Outcome(1e6, 1e6, [completion.tokens for completion in done])

    report = generation.run(cfg, {"llama.cpp": peer, "transformers, batch 4": peer})
    assert asked == [(4, 2), (1, 2)] * 2 + [(4, 3), (1, 3)] * 4
    assert "bar of 2.5 stood beside float32" in report.notes[0]
    value = {measure.name: measure.value for measure in report.measures}
    assert value["moejax, exact: same texts"] == 1 and value["moejax, int8: decode"] > 0
    assert value["llama.cpp: same texts"] == 1 and report.holds is True
    json.dumps(report.to_dict())


def test_a_peer_that_is_not_there(cfg):
    report = generation.run(dataclasses.replace(cfg, llama_python="/bin/false", variants=()))
    assert report.holds is None and "llama.cpp was not measured" in report.notes[1]


@pytest.mark.nightly
def test_transformers_writes_the_same(cfg):
    pytest.importorskip("transformers")
    report = generation.run(dataclasses.replace(cfg, transformers_python=sys.executable))
    value = {measure.name: measure.value for measure in report.measures}
    assert value["transformers, batch 2: same texts"] == 1
    assert value["transformers in bfloat16, batch 2: decode"] > 0


def test_a_text_that_is_too_short(cfg):
    model = moejax.load(cfg.model)
    with pytest.raises(UsageError, match="the text has 4 tokens"):
        generation.prompts_of(model, "abcd", cfg)
