"""A mixture of experts as a linen module."""

from typing import Any

from flax import linen as nn

from moejax import specs
from moejax.interop.flax import layer as flax_layer


class MoE(nn.Module):
    """Any Ffn of `moejax.ffn`, with its router and dispatch, over inputs [B, T, D] or [N, D].

    Noise, where the router has it, is drawn from the rng stream "routing" if one is given.

    Attributes:
      layer: the strategy, such as `Moe(num_experts=8, hidden=256, scorer=..., selector=..., dispatch=...)`.
      num_layers: of the whole model; sizes the initial values of what is added to the residual stream.
      param_dtype: in which the parameters are stored; the computation follows the dtype of the input.

    Raises:
      UsageError: the layer's router needs what only a model of moejax has.
    """

    layer: Any
    num_layers: int = 1
    param_dtype: str = "float32"

    def __post_init__(self):
        self._model(width=1)
        super().__post_init__()

    def __call__(self, x, valid=None, **fields):
        """y, like x; arguments as in `moejax.interop.flax.layer.apply`."""
        return self.with_routing(x, valid, **fields)[0]

    @nn.compact
    def with_routing(self, x, valid=None, **fields):
        """(y, Routing): where every token went, for balance losses and meters."""
        declared = self.layer.specs(self._model(x.shape[-1]))
        params = {name: self.param(name, specs.init, part) for name, part in declared.items()}
        if self.has_rng("routing"):
            fields = {"key": self.make_rng("routing")} | fields
        return flax_layer.apply(self.layer, params, x, valid, **fields)

    def _model(self, width: int):
        return flax_layer.model_of(self.layer, width, self.num_layers, self.param_dtype)
