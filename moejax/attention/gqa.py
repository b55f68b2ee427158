"""Grouped-query attention.

GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints (Ainslie et al. 2023,
arXiv 2305.13245). H query heads share G key/value heads; rotary positions; causal within a segment, with an
optional sliding window.

What the open model families add is off by default: biases, norms of queries and keys (Henry et al. 2020,
arXiv 2010.04245), clipping (OLMoE, arXiv 2409.02060), no positions at all, other frequencies, and sinks
(gpt-oss, arXiv 2508.10925): a learned score per head that takes its share of the softmax and gives nothing.

Differs from the paper: nothing.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from moejax import sharding, weights
from moejax.config import require
from moejax.ops import cache, norm
from moejax.ops.attention import mix, over_row, over_slot, scaled
from moejax.ops.rope import Rotation, rotate
from moejax.seams import Attention, Mixing
from moejax.specs import Constant, Normal, Spec


@dataclasses.dataclass(frozen=True)
class Gqa(Attention):
    num_heads: int  # H
    num_kv_heads: int  # G
    head_width: int  # A
    rope_theta: float | None = 10_000.0  # None = queries and keys know no positions
    window: int | None = None  # keys a query looks back over, itself included; None = all
    rope_scaling: Any = None  # of the frequencies, see `moejax.ops.rope`
    scale: float | None = None  # of the scores; None = head_width ** -0.5
    bias: bool = False  # of queries, keys and values
    out_bias: bool = False
    qk_norm: str = "none"  # none | head (each head by itself) | all (all heads together)
    norm: str = "rms"  # kind of qk_norm: rms | rms_plus_one
    norm_eps: float = 1e-6  # of qk_norm
    clip: float | None = None  # queries, keys and values lie between -clip and clip
    sinks: bool = False

    def __post_init__(self):
        H, G, A = self.num_heads, self.num_kv_heads, self.head_width
        require(
            H >= 1 and G >= 1 and H % G == 0,
            f"attn.num_heads={H} must be a multiple of attn.num_kv_heads={G}; "
            "choose kv heads that divide the heads",
        )
        require(A >= 1, f"attn.head_width={A} must be at least 1")
        require(
            A % 2 == 0 or self.rope_theta is None,
            f"attn.head_width={A} must be even, because rotary positions turn pairs",
        )
        has_window = self.window is not None
        require(not has_window or self.window >= 1, f"attn.window={self.window} must be at least 1, or None")
        self._check_options()

    def _check_options(self) -> None:
        for name, known in (("qk_norm", ("none", "head", "all")), ("norm", ("rms", "rms_plus_one"))):
            value = getattr(self, name)
            require(value in known, f"attn.{name}={value!r} is not one of {', '.join(known)}")
        for name in ("rope_theta", "scale", "clip"):
            value = getattr(self, name)
            require(value is None or value > 0, f"attn.{name}={value} must be positive, or None")
        require(
            self.rope_scaling is None or self.rope_theta is not None,
            "attn.rope_scaling is set, but attn.rope_theta=None leaves nothing to scale; set one or neither",
        )

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
        tree = {
            "q": Spec((D, H, A), ("embed", "heads", None), Normal(D**-0.5), m.param_dtype),
            "k": Spec((D, G, A), ("embed", "kv_heads", None), Normal(D**-0.5), m.param_dtype),
            "v": Spec((D, G, A), ("embed", "kv_heads", None), Normal(D**-0.5), m.param_dtype),
            "o": Spec((H, A, D), ("heads", None, "embed"), out, m.param_dtype),
        }
        # Vectors of all heads are flat: of one dim, as the optimiser expects of what it does not decay.
        vector = lambda width, start=0.0: Spec((width,), (None,), Constant(start), m.param_dtype)
        if self.bias:
            tree |= {"q_bias": vector(H * A), "k_bias": vector(G * A), "v_bias": vector(G * A)}
        if self.out_bias:
            tree["o_bias"] = vector(D)
        if self.qk_norm != "none":
            q_heads, k_heads = (H, G) if self.qk_norm == "all" else (1, 1)
            start = norm.NORMS[self.norm].start
            tree |= {"q_norm": vector(q_heads * A, start), "k_norm": vector(k_heads * A, start)}
        if self.sinks:
            tree["sink"] = vector(H)
        return tree

    @property
    def rotation(self):
        if self.rope_theta is None:
            return None
        return Rotation(self.rope_theta, self.head_width, self.rope_scaling)

    def mixing_flops(self, length: int) -> float:
        """FLOPs per token of scores and mix over `length` keys, masked ones included."""
        return 4.0 * self.num_heads * self.head_width * length

    def cache(self, m, num_slots: int, length: int):
        shape = (num_slots, length, self.num_kv_heads, self.head_width)
        empty = Spec(shape, ("batch", None, "kv_heads", None), Constant(0.0), m.dtype)
        return {"k": empty, "v": empty}

    def apply(self, p, x_BTD, batch, memory):
        cached = memory.cache.get("attn")
        length = batch.pos_BT.shape[1] if cached is None else cache.length(cached["k"], batch)
        q_BTHA, k_BTGA = self._project(p, "q", x_BTD, "H"), self._project(p, "k", x_BTD, "G")
        if self.rotation is not None:
            turn = self.rotation.of(batch, length, x_BTD.dtype)
            q_BTHA, k_BTGA = rotate(q_BTHA, turn), rotate(k_BTGA, turn)
        v_BTGA = self._project(p, "v", x_BTD, "G")
        if self.scale is not None:  # `mix` divides by the root of the width
            q_BTHA = scaled(q_BTHA, self.scale * self.head_width**0.5)
        if cached is None:
            k_BSGA, v_BSGA, rule = k_BTGA, v_BTGA, over_row(batch, self.window)
        else:
            k_BSGA, v_BSGA, rule, memory = self._remember(k_BTGA, v_BTGA, batch, memory)
        o_BTHA = mix(q_BTHA, k_BSGA, v_BSGA, rule, p["sink"] if self.sinks else None)
        o_BTD = weights.einsum("BTHA,HAD->BTD", o_BTHA, p["o"])
        if self.out_bias:
            o_BTD = weights.biased(o_BTD, p["o_bias"])
        # Whoever mixes other values by this map does so without the sinks: what they take is no key's.
        return o_BTD, Mixing(q_BTHA, k_BSGA, rule), memory

    def _project(self, p, name, x_BTD, head):
        """Heads of one kind: projected, biased, normed, clipped; `head` is their letter."""
        x_BTHA = weights.einsum(f"BTD,D{head}A->BT{head}A", x_BTD, p[name])
        if self.bias:
            x_BTHA = weights.biased(x_BTHA, jnp.reshape(p[f"{name}_bias"], x_BTHA.shape[2:]))
        if self.qk_norm != "none" and name != "v":
            x_BTHA = self._norm(p[f"{name}_norm"], x_BTHA, head)
        return x_BTHA if self.clip is None else jnp.clip(x_BTHA, -self.clip, self.clip)

    def _norm(self, scale, x_BTHA, head):
        apply = norm.NORMS[self.norm].apply
        if self.qk_norm == "head":
            return apply(x_BTHA, scale, self.norm_eps)
        B, T, H, A = x_BTHA.shape
        x_BTW = jnp.reshape(x_BTHA, (B, T, H * A), out_sharding=sharding.out(f"BT{head}"))
        x_BTW = apply(x_BTW, scale, self.norm_eps)
        return jnp.reshape(x_BTW, (B, T, H, A), out_sharding=sharding.out(f"BT{head}A"))

    def _remember(self, k_BTGA, v_BTGA, batch, memory):
        """Write the new keys and values at their positions; attend over the whole slot."""
        old = memory.cache["attn"]
        k_BSGA = cache.write(old["k"], k_BTGA, batch, "BSGA")
        v_BSGA = cache.write(old["v"], v_BTGA, batch, "BSGA")
        rule = over_slot(batch, cache.length(k_BSGA, batch), self.window)
        memory = memory.replace(cache={**memory.cache, "attn": {"k": k_BSGA, "v": v_BSGA}})
        return k_BSGA, v_BSGA, rule, memory
