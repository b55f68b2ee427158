"""Models in 8 and 16 bits: which parameters, by hand, and what it costs a trained one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moejax
from configs import base
from moejax import specs as sp
from moejax import weights
from moejax.errors import UsageError
from moejax.flags import main
from moejax.quantised import Bfloat16, Int8, is_quantised
from moejax.serving import short_weights
from moejax.serving.batch import answer
from moejax.serving.device import Sizes
from moejax.serving.door import PROGRAM
from moejax.serving.request import Sampling, make_request
from moejax.serving.schedulers.chunked import Chunked
from moejax.serving.short_weights import in_bfloat16, in_int8


def leaves(params) -> dict:
    flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_quantised)
    return {sp.path_name(path): leaf for path, leaf in flat}


def test_a_product_by_hand():
    """Channels (127, -127) * 0.01 and (64, 127) * 2; the row is (127, 64) / 127, as 0.5 is 63.5 steps."""
    w_DF = Int8(jnp.array([[127, 64], [-127, 127]], jnp.int8), jnp.array([0.01, 2.0]), dims=(-2,))
    np.testing.assert_allclose(w_DF.astype(jnp.float32), [[1.27, 128], [-1.27, 254]], rtol=1e-6)
    y_BTF = weights.einsum("BTD,DF->BTF", jnp.array([[[1.0, 0.5]]]), w_DF)
    row = np.array([127, 64]) / 127
    wanted = [row @ [1.27, -1.27], row @ [128, 254]]
    np.testing.assert_allclose(y_BTF[0, 0], wanted, rtol=1e-6)


def test_products_of_16_bits_by_hand():
    """1 + 2 ** -9 has nine bits behind its first: it becomes 1; the sum keeps what 16 bits cannot."""
    w_DF = Bfloat16(jnp.array([[256.0, 1], [1, 1 / 256]], jnp.bfloat16))
    x_BTD = jnp.array([[[1 + 2.0**-9, 1.0]]])
    wanted = [257, 1 + 1 / 256]
    np.testing.assert_array_equal(weights.einsum("BTD,DF->BTF", x_BTD, w_DF)[0, 0], wanted)
    table_VD = Bfloat16(w_DF.number.T)
    np.testing.assert_array_equal(
        weights.table_product(x_BTD, weights.table(table_VD, "float32"))[0, 0], wanted
    )
    np.testing.assert_array_equal(weights.rows(table_VD, jnp.array([[1]]))[0, 0], [1, 1 / 256])
    bank_EDF, size_E = Bfloat16(w_DF.number[None]), jnp.array([1])
    np.testing.assert_array_equal(weights.grouped(x_BTD[0], bank_EDF, size_E)[0], wanted)


def test_a_weight_that_is_used_in_another_way_is_refused():
    w_ZHA = Int8(jnp.ones((2, 3, 4), jnp.int8), jnp.ones((3, 4)), dims=(-3,))
    with pytest.raises(UsageError, match="channels sum over Z cannot be used as in BTHA,ZHA->BTHZ"):
        weights.einsum("BTHA,ZHA->BTHZ", jnp.ones((1, 1, 3, 4)), w_ZHA)


def test_matrices_and_tables_are_a_quarter_and_the_rest_stays(model):
    found, given = leaves(in_int8(model).params), leaves(model.params)
    kept = {path.rsplit("/")[-1] for path, leaf in found.items() if is_quantised(leaf)}
    assert kept == {"embed", "unembed", "q", "k", "v", "o", "gate", "up", "down"}
    for path, leaf in found.items():
        if is_quantised(leaf):
            assert leaf.shape == given[path].shape
            assert leaf.code.nbytes * 4 == given[path].nbytes and leaf.nbytes < 0.35 * given[path].nbytes
            half_a_step = jnp.max(jnp.abs(given[path])) / 127 / 2
            assert jnp.max(jnp.abs(leaf.astype(jnp.float32) - given[path])) <= half_a_step * 1.001
        else:
            assert leaf is given[path]
    assert not is_quantised(leaves(in_int8(model, tables=False).params)["embed"])


def test_16_bits_are_half(model):
    found, given = leaves(in_bfloat16(model).params), leaves(model.params)
    eight = leaves(in_int8(model).params)
    for path, leaf in found.items():
        assert is_quantised(leaf) == is_quantised(eight[path]), path
        if is_quantised(leaf):
            assert leaf.shape == given[path].shape and 2 * leaf.nbytes == given[path].nbytes
            np.testing.assert_allclose(leaf.astype(jnp.float32), given[path], rtol=2.0**-8)
        else:
            assert leaf is given[path]


def test_what_cannot_be_in_8_bits(model, monkeypatch):
    with pytest.raises(UsageError, match="weights are short already; load the model as floats for 16 bits"):
        in_bfloat16(in_int8(model))
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    with jax.set_mesh(mesh), pytest.raises(UsageError, match="weights of 8 bits are for one device"):
        in_int8(model)
    monkeypatch.setattr(short_weights, "MATRICES", {"other": 1})
    with pytest.raises(UsageError, match=r"none of embed, group0.* is a matrix .* those are other, embed"):
        in_int8(model, tables=False)


@pytest.fixture(scope="module")
def trained():
    """A model that has learned to count: (it, a held-out row, its loss)."""
    cfg = dataclasses.replace(base.tiny().model, vocab=32)
    params = moejax.init(jax.random.key(0), cfg)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, token_BT):
        value, slope = jax.value_and_grad(loss)(params, cfg, token_BT)
        update, state = optimizer.update(slope, state)
        return optax.apply_updates(params, update), state, value

    state, draw = optimizer.init(params), np.random.default_rng(0)
    for _ in range(60):
        params, state, _ = step(params, state, counting(draw, 16))
    model = moejax.Model(cfg, params, tokenizer=None, context=64)
    return model, counting(draw, 16)


def counting(draw, rows: int):
    """Rows that count up by 1 to 3 from anywhere, and now and then jump."""
    start, pace = draw.integers(0, 32, (rows, 1)), draw.integers(1, 4, (rows, 1))
    jump = np.cumsum(draw.random((rows, 24)) < 0.05, axis=1) * 7
    return jnp.asarray((start + pace * np.arange(24) + jump) % 32, jnp.int32)


def loss(params, cfg, token_BT):
    log_share_BTV = jax.nn.log_softmax(moejax.forward(params, cfg, token_BT[:, :-1]).logits)
    return -jnp.mean(jnp.take_along_axis(log_share_BTV, token_BT[:, 1:, None], axis=-1))


@pytest.mark.parametrize("shorten, most", [(in_int8, 0.02), (in_bfloat16, 0.005)])
def test_a_trained_model_loses_little(trained, shorten, most):
    """In nats per token."""
    model, held_out_BT = trained
    before = loss(model.params, model.cfg, held_out_BT)
    after = loss(shorten(model).params, model.cfg, held_out_BT)
    assert before < 1.2  # log 32 = 3.5 is what an untrained one has
    assert abs(after - before) < most and after != before


@pytest.mark.parametrize("shorten", [in_int8, in_bfloat16])
def test_the_engine_writes_what_generate_writes(trained, shorten):
    model = shorten(trained[0])
    prompts = [[3, 4, 5], [9, 11, 13, 15, 17], [30]]
    own = [make_request(model, prompt, Sampling(max_tokens=6)) for prompt in prompts]
    sizes = Sizes(num_slots=4, num_pages=24, page_size=8, rows=(16,))
    found = dict(answer(model, own, Chunked(16), sizes))
    assert [found[i] for i in range(3)] == moejax.generate(model, prompts, max_tokens=6)


def test_serve_in_fewer_bits(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    moejax.save(model, tmp_path / "model")
    flags = [f"--model={tmp_path}/model", "--prompt=def", "--max_tokens=4"]
    for kind, shorten in (("int8", in_int8), ("bfloat16", in_bfloat16)):
        assert main(PROGRAM, [*flags, f"--weights={kind}"]) == 0
        (wanted,) = moejax.generate(shorten(model), ["def"], max_tokens=4)
        assert capsys.readouterr().out.strip() == wanted.text.strip()
    assert main(PROGRAM, [*flags, "--weights=file"]) == 2
    assert "is for GGUF files" in capsys.readouterr().err
