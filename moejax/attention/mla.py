"""Multi-head latent attention: keys and values of all heads come from one narrow vector per position.

DeepSeek-V2 (arXiv 2405.04434), section 2.1; DeepSeek-V3 (arXiv 2412.19437), section 2.1.1. A position keeps
a latent c = norm(x W_down) and one key r that all heads share and that alone is turned by its position:

    key_h = [c K_h ; r]    value_h = c V_h    query_h = [plain_h ; turned_h]
    score_h = scale * (plain_h . (c K_h) + turned_h . r)

Keys and values can be expanded, or K_h can be absorbed into the query and V_h into the output, because
plain_h . (c K_h) = (plain_h K_h^T) . c; then all heads attend over the rows [c ; r] themselves. A cache holds
these rows. Both forms are the same function: without a cache keys are expanded, with one whatever costs less,
so that decoding never expands what it remembers.

Differs from the papers: nothing.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from moejax import sharding, weights
from moejax.config import require
from moejax.ops import cache, rope
from moejax.ops.attention import mix, over_row, over_slot, scaled
from moejax.ops.norm import rms_norm
from moejax.seams import Attention, Mixing
from moejax.specs import Constant, Normal, Spec


@dataclasses.dataclass(frozen=True)
class Mla(Attention):
    num_heads: int  # H
    kv_rank: int  # Z, width of the latent; V3: 512
    plain_width: int  # of a head's query and key, what positions do not turn; V3: 128
    turned_width: int  # of a head's query and of the shared key, what positions turn; V3: 64
    value_width: int  # C; V3: 128
    q_rank: int | None = None  # width of a latent for queries; None = projected at once; V3: 1536
    rope_theta: float = 10_000.0
    rope_scaling: Any = None  # of the frequencies, see `moejax.ops.rope`; V3: Yarn
    mscale_all_dim: float = 0.0  # with Yarn(s): scores grow by (0.1 mscale_all_dim ln s + 1)^2; V3: 1
    interleaved: bool = True  # positions turn pairs of neighbours; False: of halves
    norm_eps: float = 1e-6  # of the norms of the latents

    def __post_init__(self):
        for name in ("num_heads", "kv_rank", "plain_width", "turned_width", "value_width"):
            require(getattr(self, name) >= 1, f"attn.{name}={getattr(self, name)} must be at least 1")
        require(
            self.q_rank is None or self.q_rank >= 1, f"attn.q_rank={self.q_rank} must be at least 1, or None"
        )
        require(
            self.turned_width % 2 == 0,
            f"attn.turned_width={self.turned_width} must be even, because rotary positions turn pairs",
        )
        require(
            not self.mscale_all_dim or hasattr(self.rope_scaling, "factor"),
            f"attn.mscale_all_dim={self.mscale_all_dim} needs attn.rope_scaling with a factor, such as Yarn; "
            "give one, or set attn.mscale_all_dim=0",
        )

    @property
    def key_width(self) -> int:
        """A: width of an expanded key."""
        return self.plain_width + self.turned_width

    def check_mesh(self, mesh) -> None:
        """Refuse a mesh that cannot split the heads, or the stored latent dims."""
        require(
            self.num_heads % mesh.tensor == 0,
            f"attn.num_heads={self.num_heads} is not divisible by mesh.tensor={mesh.tensor}; "
            "choose a tensor axis that divides the heads",
        )
        for name in ("kv_rank", "q_rank"):
            require(
                (getattr(self, name) or 0) % mesh.fsdp == 0,
                f"attn.{name}={getattr(self, name)} is not divisible by mesh.fsdp={mesh.fsdp}; "
                "choose one that divides the other",
            )

    def specs(self, m):
        D, H, Z, A, C = m.width, self.num_heads, self.kv_rank, self.key_width, self.value_width

        def weight(*shape):
            """A latent is stored as the model's width is: cut over fsdp, whole where it is used."""
            dims = ("embed", "heads", None) if len(shape) == 3 else ("embed", None)
            return Spec(shape, dims, Normal(shape[0] ** -0.5), m.param_dtype)

        def scale(width):
            return Spec((width,), (None,), Constant(1.0), m.param_dtype)

        # Each block adds twice to the residual stream; the smaller start keeps its variance flat in depth.
        out = Normal((2 * m.num_layers * H * C) ** -0.5)
        tree = {
            "kv_down": weight(D, Z + self.turned_width),  # to [c ; r]
            "kv_norm": scale(Z),
            "kv_up": weight(Z, H, self.plain_width + C),  # to [plain part of key_h ; value_h]
            "o": Spec((H, C, D), ("heads", None, "embed"), out, m.param_dtype),
        }
        R = self.q_rank
        if R is None:
            return tree | {"q": weight(D, H, A)}
        return tree | {"q_down": weight(D, R), "q_norm": scale(R), "q_up": weight(R, H, A)}

    @property
    def rotation(self):
        return rope.Rotation(self.rope_theta, self.turned_width, self.rope_scaling)

    def mixing_flops(self, length: int) -> float:
        """FLOPs per token of scores and mix over `length` expanded keys, masked ones included."""
        return 2.0 * self.num_heads * (self.key_width + self.value_width) * length

    def cache(self, m, num_slots: int, length: int):
        shape = (num_slots, length, self.kv_rank + self.turned_width)
        return {"row": Spec(shape, ("batch", None, None), Constant(0.0), m.dtype)}

    def apply(self, p, x_BTD, batch, memory):
        cached = memory.cache.get("attn")
        length = batch.pos_BT.shape[1] if cached is None else cache.length(cached["row"], batch)
        turn = self.rotation.of(batch, length, x_BTD.dtype)
        q_BTHA = self._queries(p, x_BTD, turn)
        row_BSZ = self._rows(p, x_BTD, turn)
        form, rule = self._expanded, over_row(batch)
        if cached is not None:
            row_BSZ = cache.write(cached["row"], row_BSZ, batch, "BSZ")
            memory = memory.replace(cache={**memory.cache, "attn": {"row": row_BSZ}})
            expands = batch.flat is None and self._expands(x_BTD.shape[1])
            form = self._expanded if expands else self._absorbed
            rule = over_slot(batch, length)
        o_BTHC, mixing = form(p, q_BTHA, row_BSZ, rule)
        return weights.einsum("BTHC,HCD->BTD", o_BTHC, p["o"]), mixing, memory

    def _queries(self, p, x_BTD, turn):
        """[plain ; turned] of every head."""
        if self.q_rank is None:
            q_BTHA = weights.einsum("BTD,DHA->BTHA", x_BTD, p["q"])
        else:
            q_BTZ = weights.einsum("BTD,DZ->BTZ", x_BTD, p["q_down"])
            q_BTZ = rms_norm(q_BTZ, p["q_norm"], self.norm_eps)
            q_BTHA = weights.einsum("BTZ,ZHA->BTHA", q_BTZ, p["q_up"])
        plain_BTHA, turned_BTHA = jnp.split(q_BTHA, [self.plain_width], axis=-1)
        q_BTHA = jnp.concatenate([plain_BTHA, self._turn(turned_BTHA, turn)], axis=-1)
        if self.mscale_all_dim:
            gain = rope.long_text_gain(self.rope_scaling.factor, self.mscale_all_dim)
            q_BTHA = scaled(q_BTHA, gain**2)
        return q_BTHA

    def _rows(self, p, x_BTD, turn):
        """[c ; r] of every position: all that later ones need of it."""
        row_BTZ = weights.einsum("BTD,DZ->BTZ", x_BTD, p["kv_down"])
        latent_BTZ, key_BTA = jnp.split(row_BTZ, [self.kv_rank], axis=-1)
        latent_BTZ = rms_norm(latent_BTZ, p["kv_norm"], self.norm_eps)
        key_BTA = self._turn(key_BTA[:, :, None], turn)[:, :, 0]
        return jnp.concatenate([latent_BTZ, key_BTA], axis=-1)

    def _turn(self, x_BTHA, turn):
        return (rope.rotate_pairs if self.interleaved else rope.rotate)(x_BTHA, turn)

    def _expands(self, num_queries: int) -> bool:
        """Whether to expand a key and a value costs less than what absorbing costs so many queries more."""
        up = self.plain_width + self.value_width
        return num_queries * (2 * self.kv_rank - up) > self.kv_rank * up

    def _expanded(self, p, q_BTHA, row_BSZ, rule):
        """Attention over keys and values of every head."""
        latent_BSZ, key_BSA = jnp.split(row_BSZ, [self.kv_rank], axis=-1)
        up_BSHA = weights.einsum("BSZ,ZHA->BSHA", latent_BSZ, p["kv_up"])
        plain_BSHA, v_BSHC = jnp.split(up_BSHA, [self.plain_width], axis=-1)
        shape = (*plain_BSHA.shape[:3], self.turned_width)
        key_BSHA = jnp.broadcast_to(key_BSA[:, :, None], shape, out_sharding=sharding.out("BSHA"))
        k_BSHA = jnp.concatenate([plain_BSHA, key_BSHA], axis=-1)
        return mix(q_BTHA, k_BSHA, v_BSHC, rule), Mixing(q_BTHA, k_BSHA, rule)

    def _absorbed(self, p, q_BTHA, row_BSZ, rule):
        """Attention over the rows themselves, which all heads share."""
        plain_BTHA, turned_BTHA = jnp.split(q_BTHA, [self.plain_width], axis=-1)
        # Zeros and columns that nobody reads cost less than a copy of one half of the weight.
        padded_BTHA = jnp.pad(plain_BTHA, ((0, 0),) * 3 + ((0, self.value_width),))
        absorbed_BTHZ = weights.einsum("BTHA,ZHA->BTHZ", padded_BTHA, p["kv_up"])
        q_BTHZ = jnp.concatenate([absorbed_BTHZ, turned_BTHA], axis=-1)
        # `mix` divides by the root of the width that it sees.
        q_BTHZ = scaled(q_BTHZ, (q_BTHZ.shape[-1] / self.key_width) ** 0.5)
        # Pages have their one head already; a copy of the latents in them would cost more than it saves.
        k_BS1Z = row_BSZ[:, :, None] if rule.flat is None else row_BSZ
        v_BS1Z = k_BS1Z[..., : self.kv_rank] if rule.flat is None else k_BS1Z
        o_BTHZ = mix(q_BTHZ, k_BS1Z, v_BS1Z, rule)[..., : self.kv_rank]
        o_BTHA = weights.einsum("BTHZ,ZHA->BTHA", o_BTHZ, p["kv_up"])
        return o_BTHA[..., self.plain_width :], Mixing(q_BTHZ, k_BS1Z, rule)
