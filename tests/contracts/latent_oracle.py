"""Multi-head latent attention in plain float64 numpy: keys and values of every head are expanded."""

import numpy as np

from moejax.ops.rope import long_text_gain
from moejax.seams import MaskRule
from tests.contracts import oracles


def attend(attn, p, x_BTD, batch):
    """(o_BTD, q_BTHA as the record of the mixing has it) of the `Mla` `attn`, without a cache."""
    norm = lambda x, scale: np.apply_along_axis(oracles.rms_norm, -1, x, scale, attn.norm_eps)
    plain, rank = attn.plain_width, attn.kv_rank
    if attn.q_rank is None:
        q_BTHA = np.einsum("btd,dha->btha", x_BTD, p["q"])
    else:
        q_BTHA = np.einsum("btz,zha->btha", norm(x_BTD @ p["q_down"], p["q_norm"]), p["q_up"])
    q_BTHA = np.concatenate([q_BTHA[..., :plain], turn(attn, q_BTHA[..., plain:], batch.pos_BT)], axis=-1)
    if attn.mscale_all_dim:
        q_BTHA = q_BTHA * long_text_gain(attn.rope_scaling.factor, attn.mscale_all_dim) ** 2
    row_BTZ = x_BTD @ p["kv_down"]
    kv_BTHA = np.einsum("btz,zha->btha", norm(row_BTZ[..., :rank], p["kv_norm"]), p["kv_up"])
    key_BT1A = turn(attn, row_BTZ[:, :, None, rank:], batch.pos_BT)
    k_BTHA = np.concatenate([kv_BTHA[..., :plain], key_BT1A.repeat(attn.num_heads, axis=2)], axis=-1)
    pos_BT, seg_BT = batch.pos_BT, batch.seg_BT
    rule = MaskRule(pos_BT, seg_BT, pos_BT, seg_BT, batch.valid_BT)
    o_BTHC = oracles.attend(q_BTHA, k_BTHA, kv_BTHA[..., plain:], rule)
    return np.einsum("bthc,hcd->btd", o_BTHC, p["o"]), q_BTHA


def turn(attn, x_BTHA, pos_BT):
    """Pairs, neighbours or halves, as complex numbers, turned by position; they stay where they are."""
    width = x_BTHA.shape[-1]
    first = np.arange(0, width, 2) if attn.interleaved else np.arange(width // 2)
    second = first + (1 if attn.interleaved else width // 2)
    frequency_A, gain = attn.rope_theta ** (-np.arange(0, width, 2) / width), 1.0
    if attn.rope_scaling is not None:
        frequency_A = attn.rope_scaling.frequencies(attn.rope_theta, width, pos_BT.shape[1])
        gain = attn.rope_scaling.gain(pos_BT.shape[1])
    turned = gain * np.exp(1j * pos_BT[:, :, None, None] * frequency_A)
    turned = turned * (x_BTHA[..., first] + 1j * x_BTHA[..., second])
    out_BTHA = np.empty_like(x_BTHA)
    out_BTHA[..., first], out_BTHA[..., second] = turned.real, turned.imag
    return out_BTHA
