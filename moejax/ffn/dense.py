"""Dense feed-forward layer with a gated linear unit.

GLU Variants Improve Transformer (Shazeer 2020, arXiv 2002.05202): y = (act(x W_gate) * (x W_up)) W_down, with
act = silu for SwiGLU. With a linear gate as in OpenMoE (Xue et al. 2024, arXiv 2402.01739):
y = (act(x W_gate) * (x W_linear) * (x W_up)) W_down.

Differs from the papers: nothing.
"""

import dataclasses

from moejax import weights
from moejax.config import require
from moejax.ops.experts import Parts, check_activation, hidden_layer, network_specs
from moejax.seams import Ffn


@dataclasses.dataclass(frozen=True)
class Dense(Ffn):
    hidden: int  # F
    activation: str = "silu"  # silu | relu | gelu | gelu_exact | clamped_swiglu
    bias: bool = False  # a constant after every matrix
    linear_gate: bool = False  # one more factor, without activation

    def __post_init__(self):
        require(self.hidden >= 1, f"ffn.hidden={self.hidden} must be at least 1")
        check_activation(self.activation, self._parts)

    @property
    def _parts(self) -> Parts:
        return Parts(linear_gate=self.linear_gate, bias=self.bias)

    def check_mesh(self, mesh) -> None:
        """Refuse a mesh that cannot split the hidden dim."""
        require(
            self.hidden % mesh.tensor == 0,
            f"ffn.hidden={self.hidden} is not divisible by mesh.tensor={mesh.tensor}; "
            "choose a tensor axis that divides the hidden width",
        )

    def specs(self, m):
        return network_specs(m, self.hidden, self._parts)

    def apply(self, p, i):
        def product(x_BTI, name, equation):
            y_BTO = weights.einsum(equation, x_BTI, p[name])
            return weights.biased(y_BTO, p[f"{name}_bias"]) if self.bias else y_BTO

        inward = lambda name: product(i.x_BTD, name, "BTD,DF->BTF")
        return product(hidden_layer(p, inward, self.activation), "down", "BTF,FD->BTD"), None, i.memory
