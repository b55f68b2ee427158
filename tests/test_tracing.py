"""A trace says what the forward pass did, whatever the batches were."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moejax
from moejax.config import BlockConfig, Group
from moejax.errors import UsageError
from moejax.ffn.dense import Dense
from moejax.model import forward as decoder
from moejax.routers.select.top_k import TopK
from moejax.training.data.tokenizer import byte_tokenizer
from tests.contracts import tiny

WIDE = dataclasses.replace(tiny.MOE, num_experts=8, selector=TopK(3))


def model(*blocks, context=16, **changes):
    cfg = tiny.model(*blocks, vocab=272, **changes)
    return moejax.Model(cfg, tiny.host_params(cfg), byte_tokenizer(), context)


def routing_of(model, tokens):
    """Per routed block: experts, gates and score shares of one text, from the forward pass itself."""

    def probe(out, batch):
        return {} if out.routing is None else dataclasses.asdict(out.routing)

    batch = tiny.document([tokens])
    params = jax.tree.map(jnp.asarray, model.params)
    probes = decoder.forward(params, model.cfg, batch, probe=probe).probes
    return [
        {name: np.asarray(block[name][i][0]) for name in ("expert_BTK", "gate_BTK", "kept_BTK", "score_BTE")}
        for group, g in zip(probes, model.cfg.groups, strict=True)
        for i in range(g.repeat)
        for block in group
        if block
    ]


@pytest.mark.parametrize("scan", [True, False])
def test_a_trace_is_what_the_forward_pass_did(scan):
    tiny_model = model(scan=scan)
    texts = [[1, 5, 9], [1, 7, 7, 200, 3]]
    trace = moejax.routing_trace(tiny_model, texts, scores=True, batch_rows=3)
    assert trace.token_N.tolist() == [1, 5, 9, 1, 7, 7, 200, 3]
    assert trace.text_N.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert trace.pos_N.tolist() == trace.place_N.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert trace.layer_L.tolist() == [1, 3]  # dense, mixture, dense, mixture
    assert trace.experts_L.tolist() == [4, 4]
    for text, own in zip(texts, trace.texts(), strict=True):
        for layer, seen in zip(trace.layers(), routing_of(tiny_model, text), strict=True):
            np.testing.assert_array_equal(layer.expert_NK[own], seen["expert_BTK"])
            np.testing.assert_allclose(layer.gate_NK[own], seen["gate_BTK"], rtol=2e-3)
            np.testing.assert_array_equal(layer.kept_NK[own], seen["kept_BTK"])
            np.testing.assert_allclose(layer.score_NE[own], seen["score_BTE"], atol=1e-3)


def test_rows_and_batches_change_nothing():
    texts = ["def main():", "x", "import os"]
    alone = moejax.routing_trace(model(), texts, batch_rows=1)
    together = moejax.routing_trace(model(), texts, batch_rows=4)
    np.testing.assert_array_equal(alone.expert_LNK, together.expert_LNK)
    np.testing.assert_array_equal(alone.text_N, together.text_N)


def test_a_long_text_goes_on_in_another_row():
    trace = moejax.routing_trace(model(context=4), [np.arange(1, 11)], labels=["count"])
    assert trace.row_N.tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert trace.pos_N.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert trace.token_N.tolist() == list(range(1, 11))


def test_labels_are_those_of_the_texts():
    trace = moejax.routing_trace(model(context=4), ["abcdef", "x", "yz"], labels=["b", "a", "b"])
    assert trace.labels == ("b", "a")
    assert [trace.label_N[own].tolist() for own in trace.texts()] == [[0] * 4, [0] * 3, [1] * 2, [0] * 3]


def test_layers_of_different_widths():
    groups = (Group((BlockConfig(tiny.ATTN, tiny.MOE),), 2), Group((BlockConfig(tiny.ATTN, WIDE),), 1))
    trace = moejax.routing_trace(model(groups=groups), [[1, 2, 3]], scores=True)
    assert trace.experts_L.tolist() == [4, 4, 8]
    assert trace.expert_LNK.shape == (3, 3, 3)
    assert (trace.expert_LNK[:2, :, 2] == 4).all()  # two slots there: the third is empty
    assert [layer.score_NE.shape for layer in trace.layers()] == [(3, 4), (3, 4), (3, 8)]
    assert [layer.slots_per_token for layer in trace.layers()] == [2, 2, 3]


def test_a_model_without_routers_is_refused():
    with pytest.raises(UsageError, match="the model has no routers"):
        moejax.routing_trace(model(BlockConfig(tiny.ATTN, Dense(8))), ["x"])


@pytest.mark.parametrize(
    "texts, more, words",
    [
        ("one", {}, "texts is one text"),
        ([], {}, "texts is empty"),
        ([[]], {}, r"texts\[0\] is float64 \(0,\)"),
        ([[1], [1, 272]], {}, r"texts\[1\] has ids outside 0 to 271"),
        (["a"], {"labels": ["x", "y"]}, "there are 2 labels for 1 texts"),
    ],
)
def test_texts_that_cannot_be_used(texts, more, words):
    with pytest.raises(UsageError, match=words):
        moejax.routing_trace(model(), texts, **more)


def test_a_recorder_without_tokens_says_so():
    with pytest.raises(UsageError, match="no token has passed"):
        moejax.TraceRecorder().trace()


def test_serving_is_traced_as_it_happens():
    """Prompts and what is written, but for the last token; a later forward pass sees the same."""
    tiny_model = model(context=40)
    recorder = moejax.TraceRecorder()
    prompts = [[1, 5, 9], [1, 7, 7, 200, 3, 4, 8], [1, 2]]
    settings = {"max_tokens": [20, 3, 1], "temperature": 1.0, "batch_rows": 2}
    completions = moejax.generate(tiny_model, prompts, recorder=recorder, **settings)
    assert completions == moejax.generate(tiny_model, prompts, **settings)
    trace = recorder.trace()
    fed = [[*prompt, *done.tokens[:-1]] for prompt, done in zip(prompts, completions, strict=True)]
    assert [done.finish_reason for done in completions] == ["length"] * 3
    assert [trace.token_N[own].tolist() for own in trace.texts()] == fed
    assert [trace.pos_N[own].tolist() for own in trace.texts()] == [list(range(len(own))) for own in fed]
    assert trace.labels == ("prompt", "generated")
    sizes = [np.bincount(trace.label_N[own], minlength=2).tolist() for own in trace.texts()]
    assert sizes == [[3, 19], [7, 2], [2, 0]]
    whole = moejax.routing_trace(tiny_model, fed)
    np.testing.assert_array_equal(trace.expert_LNK, whole.expert_LNK)
    assert trace.layer_L.tolist() == whole.layer_L.tolist()


def test_a_recorder_goes_on_with_new_texts():
    recorder = moejax.TraceRecorder()
    for prompt in ([1, 2, 3], [1, 4]):
        moejax.generate(model(), [prompt], recorder=recorder, max_tokens=1)
    trace = recorder.trace()
    assert trace.token_N.tolist() == [1, 2, 3, 1, 4]
    assert trace.text_N.tolist() == [0, 0, 0, 1, 1]
