"""Grouped-query attention.

GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints (Ainslie et al. 2023,
arXiv 2305.13245). H query heads share G key/value heads; rotary positions; causal within a segment, with an
optional sliding window.

Differs from the paper: nothing.
"""

import dataclasses

import jax.numpy as jnp

from moejax import weights
from moejax.config import require
from moejax.ops.attention import mix
from moejax.ops.cache import write
from moejax.ops.rope import rotate
from moejax.seams import Attention, MaskRule, Mixing
from moejax.specs import Constant, Normal, Spec


@dataclasses.dataclass(frozen=True)
class Gqa(Attention):
    num_heads: int  # H
    num_kv_heads: int  # G
    head_width: int  # A
    rope_theta: float = 10_000.0
    window: int | None = None  # keys a query looks back over, itself included; None = all

    def __post_init__(self):
        H, G, A = self.num_heads, self.num_kv_heads, self.head_width
        require(
            G >= 1 and H % G == 0,
            f"attn.num_heads={H} must be a multiple of attn.num_kv_heads={G}; "
            "choose kv heads that divide the heads",
        )
        require(A % 2 == 0, f"attn.head_width={A} must be even, because rotary positions turn pairs")
        has_window = self.window is not None
        require(not has_window or self.window >= 1, f"attn.window={self.window} must be at least 1, or None")

    def check_mesh(self, mesh) -> None:
        """Refuse a mesh that cannot split the heads."""
        require(
            self.num_kv_heads % mesh.tensor == 0,
            f"attn.num_kv_heads={self.num_kv_heads} is not divisible by mesh.tensor={mesh.tensor}; "
            "choose a tensor axis that divides the kv heads",
        )

    def specs(self, m):
        D, H, G, A = m.width, self.num_heads, self.num_kv_heads, self.head_width
        # Each block adds twice to the residual stream; the smaller start keeps its variance flat in depth.
        out = Normal((2 * m.num_layers * H * A) ** -0.5)
        return {
            "q": Spec((D, H, A), ("embed", "heads", None), Normal(D**-0.5), m.param_dtype),
            "k": Spec((D, G, A), ("embed", "kv_heads", None), Normal(D**-0.5), m.param_dtype),
            "v": Spec((D, G, A), ("embed", "kv_heads", None), Normal(D**-0.5), m.param_dtype),
            "o": Spec((H, A, D), ("heads", None, "embed"), out, m.param_dtype),
        }

    def mixing_flops(self, length: int) -> float:
        """FLOPs per token of scores and mix over `length` keys, masked ones included."""
        return 4.0 * self.num_heads * self.head_width * length

    def cache(self, m, num_slots: int, length: int):
        shape = (num_slots, length, self.num_kv_heads, self.head_width)
        empty = Spec(shape, ("batch", None, "kv_heads", None), Constant(0.0), m.dtype)
        return {"k": empty, "v": empty}

    def apply(self, p, x_BTD, batch, memory):
        q_BTHA = rotate(weights.einsum("BTD,DHA->BTHA", x_BTD, p["q"]), batch.pos_BT, self.rope_theta)
        k_BTGA = rotate(weights.einsum("BTD,DGA->BTGA", x_BTD, p["k"]), batch.pos_BT, self.rope_theta)
        v_BTGA = weights.einsum("BTD,DGA->BTGA", x_BTD, p["v"])
        if "attn" in memory.cache:
            k_BSGA, v_BSGA, rule, memory = self._remember(k_BTGA, v_BTGA, batch, memory)
        else:
            k_BSGA, v_BSGA = k_BTGA, v_BTGA
            pos_BT, seg_BT = batch.pos_BT, batch.seg_BT
            rule = MaskRule(pos_BT, seg_BT, pos_BT, seg_BT, batch.valid_BT, self.window, own_row=True)
        o_BTHA = mix(q_BTHA, k_BSGA, v_BSGA, rule)
        return weights.einsum("BTHA,HAD->BTD", o_BTHA, p["o"]), Mixing(q_BTHA, k_BSGA, rule), memory

    def _remember(self, k_BTGA, v_BTGA, batch, memory):
        """Write the new keys and values at their positions; attend over the whole slot."""
        old = memory.cache["attn"]
        B, S = old["k"].shape[:2]
        cache = {"k": write(old["k"], k_BTGA, batch, "BSGA"), "v": write(old["v"], v_BTGA, batch, "BSGA")}
        pos_BS = jnp.broadcast_to(jnp.arange(S, dtype=batch.pos_BT.dtype), (B, S))
        seg_BS = jnp.broadcast_to(batch.seg_BT[:, :1], (B, S))
        rule = MaskRule(batch.pos_BT, batch.seg_BT, pos_BS, seg_BS, jnp.ones((B, S), bool), self.window)
        memory = memory.replace(cache={**memory.cache, "attn": cache})
        return cache["k"], cache["v"], rule, memory
