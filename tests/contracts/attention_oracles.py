"""Attention layers in plain float64 numpy, from their parameters to their outputs."""

import numpy as np

from moejax.attention.mla import Mla
from moejax.seams import MaskRule
from tests.contracts import latent_oracle, oracles


def attend(attn, p, x_BTD, batch):
    """(o_BTD, q_BTHA as the record of the mixing has it) of the layer `attn`, without a cache."""
    if isinstance(attn, Mla):
        return latent_oracle.attend(attn, p, x_BTD, batch)
    q_BTHA, k_BTGA = (turn(attn, heads(attn, p, name, x_BTD), batch.pos_BT) for name in "qk")
    if attn.scale is not None:
        q_BTHA = q_BTHA * attn.scale * np.sqrt(attn.head_width)
    pos_BT, seg_BT = batch.pos_BT, batch.seg_BT
    rule = MaskRule(pos_BT, seg_BT, pos_BT, seg_BT, batch.valid_BT, attn.window)
    o_BTHA = oracles.attend(q_BTHA, k_BTGA, heads(attn, p, "v", x_BTD), rule, p.get("sink"))
    return np.einsum("btha,had->btd", o_BTHA, p["o"]) + p.get("o_bias", 0), q_BTHA


def heads(attn, p, name, x_BTD):
    """Projected, biased, normed, clipped."""
    x_BTHA = np.einsum("btd,dha->btha", x_BTD, p[name])
    if f"{name}_bias" in p:
        x_BTHA = x_BTHA + p[f"{name}_bias"].reshape(x_BTHA.shape[2:])
    if f"{name}_norm" in p:
        width = attn.head_width if attn.qk_norm == "head" else x_BTHA.shape[2] * attn.head_width
        rows = x_BTHA.reshape(-1, width)
        norm, w = oracles.NORMS[attn.norm], p[f"{name}_norm"]
        x_BTHA = np.stack([norm(row, w, attn.norm_eps) for row in rows]).reshape(x_BTHA.shape)
    return x_BTHA if attn.clip is None else np.clip(x_BTHA, -attn.clip, attn.clip)


def turn(attn, x_BTHA, pos_BT):
    """The pair (a, a + A/2) as a complex number, turned by its frequency times the position."""
    if attn.rope_theta is None:
        return x_BTHA
    half = attn.head_width // 2
    frequency_A, gain = attn.rope_theta ** (-np.arange(half) / half), 1.0
    if attn.rope_scaling is not None:
        frequency_A = attn.rope_scaling.frequencies(attn.rope_theta, 2 * half, pos_BT.shape[1])
        gain = attn.rope_scaling.gain(pos_BT.shape[1])
    turned = np.exp(1j * pos_BT[:, :, None, None] * frequency_A) * gain
    turned = turned * (x_BTHA[..., :half] + 1j * x_BTHA[..., half:])
    return np.concatenate([turned.real, turned.imag], axis=-1)
