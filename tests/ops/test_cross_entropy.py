"""The chunked cross-entropy against the plain one in float64, in value and gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.ops import cross_entropy
from moejax.ops.cross_entropy import Unembedding, weighted_nll
from tests.contracts import tiny

B, T, D, V = 8, 5, 4, 6
BIASES = pytest.mark.parametrize("bias", [False, True])


def inputs(dtype=np.float64, scale=1.0, bias=False):
    """With a bias, logits have a scale too."""
    rng = np.random.default_rng(0)
    hidden_BTD, table_VD = rng.standard_normal((B, T, D)) * scale, rng.standard_normal((V, D))
    target_BT = rng.integers(0, V, (B, T), dtype=np.int32)
    weight_BT = rng.choice([0.0, 0.5, 2.0], (B, T)).astype(np.float32)
    table_VD, bias_V = table_VD.astype(dtype), rng.standard_normal(V).astype(dtype)
    unembedding = Unembedding(table_VD, bias_V, 0.3) if bias else Unembedding(table_VD)
    return hidden_BTD.astype(dtype), unembedding, target_BT, weight_BT


def plain(hidden_BTD, unembedding, target_BT, weight_BT):
    logits_BTV = jnp.einsum("BTD,VD->BTV", hidden_BTD, unembedding.table_VD)
    bias_V = jnp.zeros(V) if unembedding.bias_V is None else unembedding.bias_V
    log_BTV = jax.nn.log_softmax(unembedding.scale * (logits_BTV + bias_V[None, None]))
    return -jnp.sum(jnp.take_along_axis(log_BTV, target_BT[..., None], -1)[..., 0] * weight_BT)


def with_slopes(f):
    """Twice the loss, so that the slope from outside counts too."""
    return jax.value_and_grad(lambda h, unembedding, *rest: 2 * f(h, unembedding, *rest), argnums=(0, 1))


def test_one_token_by_hand():
    """Logits (log 3, 0), target 1: p = 1/4; slopes are weight * (p - hit) times the table or the state."""
    hidden_BTD, table_VD = jnp.array([[[np.log(3), 0.0]]]), jnp.eye(2)
    nll = lambda h, table: weighted_nll(h, Unembedding(table), jnp.array([[1]]), jnp.array([[2.0]]))
    assert float(nll(hidden_BTD, table_VD)) == pytest.approx(2 * np.log(4))
    d_hidden_BTD, d_table_VD = jax.grad(nll, argnums=(0, 1))(hidden_BTD, table_VD)
    np.testing.assert_allclose(d_hidden_BTD, [[[1.5, -1.5]]], rtol=1e-6)
    np.testing.assert_allclose(
        d_table_VD, [[1.5 * np.log(3), 0], [-1.5 * np.log(3), 0]], rtol=1e-6, atol=1e-7
    )


def test_bias_and_scale_by_hand():
    """Logits 2 ((0, 0) + (log 2, 0)) = (log 4, 0), target 1: p = 1/5; slopes of the bias are 2 (p - hit)."""
    nll = lambda bias_V: weighted_nll(
        jnp.zeros((1, 1, 2)), Unembedding(jnp.eye(2), bias_V, 2.0), jnp.array([[1]]), jnp.ones((1, 1))
    )
    loss, d_bias_V = jax.value_and_grad(nll)(jnp.array([np.log(2), 0.0]))
    assert float(loss) == pytest.approx(np.log(5))
    np.testing.assert_allclose(d_bias_V, [1.6, -1.6], rtol=1e-6)


@BIASES
@pytest.mark.parametrize("chunk_tokens", [512, 8, 1])
def test_equals_the_plain_form(chunk_tokens, bias, monkeypatch):
    """In one chunk, in five of one position, and where chunks of the asked size are not to be had."""
    monkeypatch.setattr(cross_entropy, "CHUNK_TOKENS", chunk_tokens)
    with jax.enable_x64(True):
        got = jax.jit(with_slopes(weighted_nll))(*inputs(bias=bias))
        want = jax.jit(with_slopes(plain))(*inputs(bias=bias))
    tiny.close(got, want, 1e-12)


@BIASES
def test_the_split_vocabulary_changes_nothing(bias):
    with jax.enable_x64(True):
        want = with_slopes(plain)(*inputs(bias=bias))
        with tiny.on_mesh(data=2, fsdp=2, tensor=2) as mesh:
            P = jax.sharding.PartitionSpec
            rows = ("data", "fsdp", "expert")
            where = (P(rows), P("tensor"), P(rows), P(rows))
            placed = (
                jax.device_put(x, jax.NamedSharding(mesh, s))
                for x, s in zip(inputs(bias=bias), where, strict=True)
            )
            got = jax.jit(with_slopes(weighted_nll))(*placed)
    tiny.close(got, want, 1e-12)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_large_logits_stay_finite(self):
        args = inputs(np.float32, scale=1e4)
        got = np.asarray(self.variant(with_slopes(weighted_nll))(*args)[0]).ravel()[0]
        wide = np.einsum("btd,vd->btv", *(x.astype(np.float64) for x in (args[0], args[1].table_VD)))
        nll_BT = np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1)) + wide.max(-1)
        nll_BT -= np.take_along_axis(wide, args[2][..., None], -1)[..., 0]
        np.testing.assert_allclose(got, 2 * np.sum(nll_BT * args[3]), rtol=1e-5)
