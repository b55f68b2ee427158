"""MixtralForCausalLM of transformers and the model here are one function of the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from moejax import specs as sp
from moejax.attention.gqa import Gqa
from moejax.errors import UsageError
from moejax.interop.hf import mixtral
from moejax.model import forward as decoder
from moejax.routers.select.top_k import TopK
from moejax.seams import Batch

B, T, V = 2, 12, 40
# heads, key/value heads, head width, window, tied
SHAPES = [(4, 2, 8, None, True), (4, 4, 8, None, False), (6, 1, 4, None, False), (2, 1, 16, 5, True)]


@pytest.fixture(scope="module")
def hf():
    """(torch, transformers), which the extra `peers` installs."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's imports
        torch = pytest.importorskip("torch", reason="torch comes with the extra: pip install moejax[peers]")
        name = "transformers"
        transformers = pytest.importorskip(name, reason="comes with the extra: pip install moejax[peers]")
    torch.set_num_threads(1)  # the tensors are tiny, and other tests run beside this one
    return torch, transformers


def model(heads: int, kv_heads: int, width: int, window: int | None, tied: bool):
    return base.mixtral(V, Gqa(heads, kv_heads, width, 5e4, window), base.moe(4, 24, 2), layers=2, tied=tied)


def theirs(hf, m):
    """A random peer whose weights are far from their small start, so that routing and attention matter."""
    torch, transformers = hf
    torch.manual_seed(0)
    settings = {"attn_implementation": "eager", "experts_implementation": "eager", "initializer_range": 0.2}
    peer = transformers.MixtralForCausalLM(transformers.MixtralConfig(**mixtral.hf_config(m), **settings))
    for name, parameter in peer.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return peer


def state(peer):
    return {name: tensor.detach().numpy() for name, tensor in peer.state_dict().items()}


def batch():
    token_BT = np.random.default_rng(0).integers(0, V, (B, T + 1), np.int32)
    pos_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    ones_BT = jnp.ones((B, T), jnp.int32)
    target_BT = jnp.asarray(token_BT[:, 1:])
    return Batch(jnp.asarray(token_BT[:, :-1]), pos_BT, ones_BT, ones_BT > 0, target_BT, jnp.ones((B, T)))


@pytest.mark.parametrize("shape", SHAPES)
def test_same_weights_same_logits(hf, shape):
    torch, _ = hf
    m = model(*shape)
    peer = theirs(hf, m)
    params = jax.tree.map(jnp.asarray, mixtral.from_hf(state(peer), m))
    with torch.no_grad():
        wanted_BTV = peer(torch.from_numpy(np.array(batch().token_BT)).long(), use_cache=False).logits.numpy()
    logits_BTV = jax.jit(lambda params, data: decoder.forward(params, m, data).logits_BTV)(params, batch())
    assert np.abs(wanted_BTV).max() > 1
    np.testing.assert_allclose(logits_BTV, wanted_BTV, rtol=0, atol=2e-4 * np.abs(wanted_BTV).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back_is_bit_exact(hf, shape):
    torch, _ = hf
    m = model(*shape)
    draw = np.random.default_rng(1)
    params = sp.tree_map(lambda spec: draw.normal(size=spec.shape).astype(spec.dtype), decoder.specs(m))
    peer = theirs(hf, m)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in mixtral.to_hf(params, m).items()}
    missing, unknown = peer.load_state_dict(tensors, strict=False)
    assert not unknown and missing == (["lm_head.weight"] if m.tied else [])
    jax.tree.map(np.testing.assert_array_equal, mixtral.from_hf(state(peer), m), params)


def test_same_weights_same_gradients(hf):
    """The map is linear and only moves numbers, so it maps gradients as it maps weights."""
    torch, _ = hf
    m = model(4, 2, 8, None, False)
    peer = theirs(hf, m)
    data = batch()
    token_BT, target_BT = (torch.from_numpy(np.array(x)).long() for x in (data.token_BT, data.target_BT))
    peer(token_BT, labels=target_BT, shift_labels=target_BT, use_cache=False).loss.backward()
    wanted = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}

    def loss(params):
        logits_BTV = decoder.forward(params, m, data).logits_BTV
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits_BTV, data.target_BT))

    params = jax.tree.map(jnp.asarray, mixtral.from_hf(state(peer), m))
    grads = mixtral.to_hf(jax.jit(jax.grad(loss))(params), m)
    assert grads.keys() == wanted.keys()
    for name, grad in grads.items():
        bound = 5e-4 * np.abs(wanted[name]).max()
        np.testing.assert_allclose(grad, wanted[name], rtol=0, atol=bound, err_msg=name)


def test_the_peer_sees_the_same_settings():
    config = mixtral.hf_config(base.small().model)
    assert config["head_dim"] * config["num_attention_heads"] == config["hidden_size"] == 512
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (8, 2)
    assert config["intermediate_size"] == 1024
    assert config["tie_word_embeddings"] and config["num_hidden_layers"] == 6


def test_another_model_is_refused():
    m = base.tiny().model
    (group,), (block,) = m.groups, m.groups[0].blocks

    def having(ffn):
        blocks = (dataclasses.replace(block, ffn=ffn),)
        return dataclasses.replace(m, groups=(dataclasses.replace(group, blocks=blocks),))

    scaled = having(dataclasses.replace(block.ffn, selector=TopK(2, scale=2.0)))
    with pytest.raises(UsageError, match=r"selector.scale is 2.0; a Mixtral has 1.0"):
        mixtral.hf_config(scaled)
    mixed = dataclasses.replace(m, groups=(*m.groups, *scaled.groups))
    with pytest.raises(UsageError, match="2 kinds of blocks"):
        mixtral.hf_config(mixed)
