"""What a feed-forward network computes, alone or as one of a bank of experts, and the parameters of both."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from moejax import weights
from moejax.config import require
from moejax.specs import Constant, Normal, Spec, tree_map
from pallas_kernels.grouped_swiglu.activations import ACTIVATIONS as FUSED

ALPHA, LIMIT = 1.702, 7.0  # of gpt-oss


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a network has besides the matrices `up` and `down`."""

    gated: bool = True  # a matrix `gate`, which passes the activation in the place of `up`
    linear_gate: bool = False  # a matrix `linear_gate`, a factor of `up`
    bias: bool = False  # a constant after every matrix: `up_bias`, ...

    @property
    def inward(self) -> tuple[str, ...]:
        """Matrices from the model's width to the hidden one."""
        return ("gate",) * self.gated + ("linear_gate",) * self.linear_gate + ("up",)


def clamped_swiglu(gate, up):
    """SwiGLU of gpt-oss (arXiv 2508.10925): bounded inputs, a sharper sigmoid, and `up` around 1."""
    gate, up = jnp.minimum(gate, LIMIT), jnp.clip(up, -LIMIT, LIMIT)
    return (up + 1) * gate * jax.nn.sigmoid(ALPHA * gate)


ACTIVATIONS = FUSED | {"gelu_exact": functools.partial(jax.nn.gelu, approximate=False)}  # gelu: with tanh
OF_BOTH = {"clamped_swiglu": clamped_swiglu}  # of gate and up together


def check_activation(name: str, parts: Parts = Parts()) -> None:
    """Refuse an activation that nobody knows, and parts that cannot be together."""
    known = ", ".join(ACTIVATIONS | OF_BOTH)
    require(name in ACTIVATIONS or name in OF_BOTH, f"ffn.activation={name!r} is not one of {known}")
    require(
        parts.gated or not parts.linear_gate,
        "ffn.linear_gate=True is one gate more, but ffn.gated=False; set ffn.gated=True, or no linear gate",
    )
    require(
        name in ACTIVATIONS or parts.inward == ("gate", "up"),
        f"ffn.activation={name!r} is of a gate and nothing else, but the matrices are "
        f"{', '.join(parts.inward)}; choose one of {', '.join(ACTIVATIONS)}",
    )


def check_mesh(mesh, num_experts: int, hidden: int, dispatch) -> None:
    """Refuse a mesh that cannot split a bank of experts, or over which `dispatch` cannot move rows."""
    require(
        num_experts % mesh.expert == 0,
        f"ffn.num_experts={num_experts} is not divisible by mesh.expert={mesh.expert}; "
        "choose a mesh whose expert axis divides the experts",
    )
    axes, parts = "mesh.tensor", mesh.tensor
    if dispatch.sliced:
        axes, parts = "mesh.tensor*mesh.fsdp", mesh.tensor * mesh.fsdp
    require(
        hidden % parts == 0,
        f"ffn.hidden={hidden} is not divisible by {axes}={parts}; "
        "choose a mesh that divides the expert width",
    )
    dispatch.check_mesh(mesh)


def network_specs(m, hidden: int, parts: Parts):
    """Parameters of one network."""
    D, F = m.width, hidden
    down_std = (2 * m.num_layers * F) ** -0.5
    tree = {name: Spec((D, F), ("embed", "ffn"), Normal(D**-0.5), m.param_dtype) for name in parts.inward}
    tree["down"] = Spec((F, D), ("ffn", "embed"), Normal(down_std), m.param_dtype)
    if parts.bias:
        zeros = lambda w: Spec(w.shape[-1:], w.dims[-1:], Constant(0.0), m.param_dtype)
        tree |= {f"{name}_bias": zeros(w) for name, w in tree.items()}
    return tree


def bank_specs(m, num_experts: int, hidden: int, used: float, parts: Parts = Parts(), sliced: bool = False):
    """Parameters of experts; the biases of their outputs are `down_bias_specs`.

    Args:
      m: ModelConfig.
      used: share of the experts that a token passes.
      sliced: stored as a dispatch wants them that is `sliced`.
    """
    own = {"embed": "expert_embed", "ffn": "expert_ffn"} if sliced else {}

    def stacked(spec):
        dims = ("expert", *(own.get(dim, dim) for dim in spec.dims))
        return dataclasses.replace(spec, shape=(num_experts, *spec.shape), dims=dims, used=used)

    network = network_specs(m, hidden, parts)
    network.pop("down_bias", None)
    return tree_map(stacked, network)


def down_bias_specs(m, num_experts: int, used: float) -> Spec:
    """The constant that each expert adds to its output.

    It is no part of the bank, because what a device computes may be a part of an expert's output, and the
    parts are summed.
    """
    return Spec((num_experts, m.width), (None, "embed"), Constant(0.0), m.param_dtype, used)


def computed(parts: Parts, activation: str):
    """The `seams.ExpertFn` of a bank: one kernel where there is one, otherwise product by product."""
    fused = parts == Parts() and activation in FUSED
    return functools.partial(gated_experts if fused else composed_experts, activation=activation)


def gated_experts(p, rows_RD, size_E, activation: str = "silu"):
    """Gated linear units (Shazeer 2020, arXiv 2002.05202) over rows sorted by expert; others are zero."""
    return weights.gated_mlp(rows_RD, p["gate"], p["up"], p["down"], size_E, activation)


def composed_experts(p, rows_RD, size_E, activation: str = "silu"):
    """Networks of any parts over rows sorted by expert; others are zero."""
    end_E = jnp.cumsum(size_E)
    row_R1 = jnp.arange(len(rows_RD))[:, None]
    member_RE = ((row_R1 >= (end_E - size_E)[None]) & (row_R1 < end_E[None])).astype(rows_RD.dtype)

    def product(name):
        y_RF = weights.grouped(rows_RD, p[name], size_E)
        if f"{name}_bias" not in p:
            return y_RF
        bias_EF = p[f"{name}_bias"].astype(y_RF.dtype)  # a product and no lookup, whose gradient is a scatter
        return y_RF + jnp.einsum("RE,EF->RF", member_RE, bias_EF, precision="highest")

    return weights.grouped(hidden_layer(p, product, activation), p["down"], size_E)


def hidden_layer(p, product, activation: str):
    """What lies between the two widths of the network `p`.

    Args:
      product: the input times the matrix of a name, plus its bias.
    """
    up = product("up")
    if "gate" not in p:
        return ACTIVATIONS[activation](up)
    if "linear_gate" in p:
        up = up * product("linear_gate")
    return gated(product("gate"), up, activation)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def gated(gate, up, activation: str):
    """activation(gate) * up; its backward pass keeps the two inputs alone, the widest arrays of a layer."""
    if activation in OF_BOTH:
        return OF_BOTH[activation](gate, up)
    return ACTIVATIONS[activation](gate) * up
