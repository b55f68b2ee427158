"""Mixture-of-experts layers for Flax models: `MoE` here is an nnx module, `linen.MoE` a linen one."""

from moejax.interop.flax.layer import routing_loss
from moejax.interop.flax.nnx import MoE

__all__ = ["MoE", "routing_loss"]
