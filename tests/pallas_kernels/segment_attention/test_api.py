"""What the op takes and refuses, layouts, and the log-sum-exp by which parts join."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import segment_attention, segment_attention_with_lse
from pallas_kernels.segment_attention.shapes import AttentionShape
from pallas_kernels.testing import draw_attention

SHAPE = AttentionShape("short", B=2, T=12, H=4, G=2, A=4)
ONES_BT = np.ones((2, 12), np.int32)


def operands(dtype=jnp.float32):
    return *draw_attention(SHAPE, ONES_BT, dtype=dtype)[:3], ONES_BT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, s: (q[:, :, :3], k, v, s), r"q is \(2, 12, 3, 4\).* H a multiple of G"),
        (lambda q, k, v, s: (q, k[..., :2], v, s), r"k is \(2, 12, 2, 2\)"),
        (lambda q, k, v, s: (q, k, v, s[:, :5]), r"segments are \(2, 5\)"),
        (lambda q, k, v, s: (q[0], k, v, s), r"expected \[B, T, H, A\]"),
        (lambda q, k, v, s: (q, k, v, s * 1.0), "segments are float64; expected integers"),
    ],
)
def test_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        segment_attention(*change(*operands()))


def test_a_window_of_nothing():
    with pytest.raises(ValueError, match="window=0; expected at least 1"):
        segment_attention(*operands(), window=0)


def test_types_are_promoted():
    q, k, v, segment_BT = operands(jnp.bfloat16)
    assert jax.eval_shape(segment_attention, q, k, v, segment_BT).dtype == jnp.bfloat16
    mixed = q, k.astype(jnp.float32), v, segment_BT.astype(np.uint8)
    o, lse = jax.eval_shape(segment_attention_with_lse, *mixed)
    assert (o.dtype, lse.dtype) == (jnp.float32, jnp.float32)


@pytest.mark.parametrize("axis", range(4))
def test_an_empty_axis(axis):
    """Of rows, positions, heads or widths; a width of 0 has scores of 0 but is given zeros all the same."""
    q, k, v, segment_BT = operands()
    cut = lambda x: jax.lax.slice_in_dim(x, 0, 0, axis=axis)
    q = cut(q)
    k, v = (x if axis == 2 else cut(x) for x in (k, v))
    segment_BT = cut(segment_BT) if axis < 2 else segment_BT
    o, lse = segment_attention_with_lse(q, k, v, segment_BT)
    assert o.shape == (*q.shape[:3], v.shape[3])
    assert lse.shape == (q.shape[0], q.shape[2], q.shape[1])
    assert not o.any()


def test_parts_of_the_keys_join():
    """Keys before and from position 5 on, as two attentions: what ring attention does."""
    q, k, v, segment_BT = operands()
    whole = segment_attention(q, k, v, segment_BT)
    early = np.where(np.arange(12) < 5, 1, 0)[None] * ONES_BT
    o_1, lse_1 = segment_attention_with_lse(q[:, 5:], k[:, 5:], v[:, 5:], segment_BT[:, 5:])
    # the later queries, put in front of nothing but their own place among the early keys
    score = jnp.einsum("BTHA,BSHA->BHTS", q[:, 5:], jnp.repeat(k[:, :5], 2, axis=2)) / 2
    lse_0 = jax.nn.logsumexp(score, axis=-1)
    o_0 = jnp.einsum("BHTS,BSHC->BTHC", jax.nn.softmax(score), jnp.repeat(v[:, :5], 2, axis=2))
    lse = jnp.logaddexp(lse_0, lse_1)
    weigh = lambda part: jnp.swapaxes(jnp.exp(part - lse), 1, 2)[..., None]
    np.testing.assert_allclose(weigh(lse_0) * o_0 + weigh(lse_1) * o_1, whole[:, 5:], rtol=1e-4, atol=1e-5)
    assert not segment_attention(q, k, v, early)[:, 5:].any()


def test_layouts_that_do_not_fit_are_refused():
    mesh = jax.make_mesh(
        (2, 2), ("data", "tensor"), devices=jax.devices()[:4], axis_types=(AxisType.Explicit,) * 2
    )
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    q, k, v, segment_BT = operands()
    rows = put(segment_BT, "data")
    with jax.set_mesh(mesh):
        heads_of_q_alone = (put(q, "data", None, "tensor"), put(k, "data"), put(v, "data"), rows)
        with pytest.raises(ValueError, match=r"laid out as .*'tensor'.*; expected rows split alike"):
            segment_attention(*heads_of_q_alone)
        positions = *(put(x, None, "data") for x in (q, k, v)), put(segment_BT, None, "data")
        with pytest.raises(ValueError, match="and nothing else split"):
            segment_attention(*positions)


def test_replicated_operands_under_a_mesh():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(AxisType.Explicit,))
    expected = segment_attention(*operands())
    with jax.set_mesh(mesh):
        args = [jax.device_put(x, NamedSharding(mesh, P())) for x in operands()]
        np.testing.assert_allclose(segment_attention(*args), expected, rtol=1e-6, atol=1e-6)
