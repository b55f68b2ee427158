"""A mixture of experts as an nnx module."""

import jax
from flax import nnx

from moejax import sharding, specs
from moejax.interop.flax import layer as flax_layer


class MoE(nnx.Module):
    """Any Ffn of `moejax.ffn`, with its router and dispatch, over inputs [B, T, D] or [N, D].

    Args:
      width: D.
      layer: the strategy, such as `Moe(num_experts=8, hidden=256, scorer=..., selector=..., dispatch=...)`.
      num_layers: of the whole model; sizes the initial values of what is added to the residual stream.
      param_dtype: in which the parameters are stored; the computation follows the dtype of the input.

    Raises:
      UsageError: the layer's router needs what only a model of moejax has.
    """

    def __init__(self, width: int, layer, *, num_layers=1, param_dtype="float32", rngs: nnx.Rngs):
        declared = layer.specs(flax_layer.model_of(layer, width, num_layers, param_dtype))
        values = specs.init(rngs.params(), declared)
        self.layer = layer
        self.params = nnx.data(specs.tree_map(_param, declared, values))

    def __call__(self, x, valid=None, **fields):
        """y, like x; arguments as in `moejax.interop.flax.layer.apply`."""
        return self.with_routing(x, valid, **fields)[0]

    def with_routing(self, x, valid=None, **fields):
        """(y, Routing): where every token went, for balance losses and meters."""
        params = jax.tree.map(lambda p: p[...], self.params, is_leaf=lambda p: isinstance(p, nnx.Param))
        return flax_layer.apply(self.layer, params, x, valid, **fields)


def _param(spec, value):
    return nnx.Param(value, out_sharding=sharding.stored(spec.dims))
