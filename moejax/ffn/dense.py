"""Dense feed-forward layer with a gated linear unit.

GLU Variants Improve Transformer (Shazeer 2020, arXiv 2002.05202): y = (act(x W_gate) * (x W_up)) W_down, with
act = silu for SwiGLU.

Differs from the paper: nothing.
"""

import dataclasses

from moejax import weights
from moejax.config import require
from moejax.ops.experts import check_activation, gated
from moejax.seams import Ffn
from moejax.specs import Normal, Spec


@dataclasses.dataclass(frozen=True)
class Dense(Ffn):
    hidden: int  # F
    activation: str = "silu"  # silu | relu | gelu

    def __post_init__(self):
        require(self.hidden >= 1, f"ffn.hidden={self.hidden} must be at least 1")
        check_activation(self.activation)

    def check_mesh(self, mesh) -> None:
        """Refuse a mesh that cannot split the hidden dim."""
        require(
            self.hidden % mesh.tensor == 0,
            f"ffn.hidden={self.hidden} is not divisible by mesh.tensor={mesh.tensor}; "
            "choose a tensor axis that divides the hidden width",
        )

    def specs(self, m):
        D, F = m.width, self.hidden
        return {
            "gate": Spec((D, F), ("embed", "ffn"), Normal(D**-0.5), m.param_dtype),
            "up": Spec((D, F), ("embed", "ffn"), Normal(D**-0.5), m.param_dtype),
            "down": Spec((F, D), ("ffn", "embed"), Normal((2 * m.num_layers * F) ** -0.5), m.param_dtype),
        }

    def apply(self, p, i):
        gate_BTF = weights.einsum("BTD,DF->BTF", i.x_BTD, p["gate"])
        up_BTF = weights.einsum("BTD,DF->BTF", i.x_BTD, p["up"])
        y_BTD = weights.einsum("BTF,FD->BTD", gated(gate_BTF, up_BTF, self.activation), p["down"])
        return y_BTD, None, i.memory
