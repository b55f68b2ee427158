"""What an expert computes, and the parameters of a bank of experts."""

import functools

import jax

from moejax import weights
from moejax.config import require
from moejax.specs import Normal, Spec
from pallas_kernels.grouped_swiglu.activations import ACTIVATIONS


def check_activation(name: str) -> None:
    """Refuse an activation that nobody knows."""
    require(name in ACTIVATIONS, f"ffn.activation={name!r} is not one of {', '.join(ACTIVATIONS)}")


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


def bank_specs(m, num_experts: int, hidden: int, used: float, gated: bool = True, sliced: bool = False):
    """Parameters of experts.

    Args:
      m: ModelConfig.
      used: share of the experts that a token passes.
      gated: for `gated_experts`, otherwise for `plain_experts`.
      sliced: stored as a dispatch wants them that is `sliced`.
    """
    E, D, F = num_experts, m.width, hidden
    embed, ffn = ("expert_embed", "expert_ffn") if sliced else ("embed", "ffn")

    def matrix(shape, dims, std):
        return Spec((E, *shape), ("expert", *dims), Normal(std), m.param_dtype, used)

    gate = {"gate": matrix((D, F), (embed, ffn), D**-0.5)} if gated else {}
    return gate | {
        "up": matrix((D, F), (embed, ffn), D**-0.5),
        "down": matrix((F, D), (ffn, embed), (2 * m.num_layers * F) ** -0.5),
    }


def gated_experts(p, rows_RD, size_E, activation: str = "silu"):
    """Gated linear units (Shazeer 2020, arXiv 2002.05202) over rows sorted by expert; others are zero."""
    return weights.gated_mlp(rows_RD, p["gate"], p["up"], p["down"], size_E, activation)


def plain_experts(p, rows_RD, size_E, activation: str = "silu"):
    """Two-layer experts over rows sorted by expert: activation(x W_up) W_down; others are zero."""
    up_RF = weights.grouped(rows_RD, p["up"], size_E)
    return weights.grouped(ACTIVATIONS[activation](up_RF), p["down"], size_E)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def gated(gate, up, activation: str):
    """activation(gate) * up; its backward pass keeps the two inputs alone, the widest arrays of a layer."""
    return ACTIVATIONS[activation](gate) * up
