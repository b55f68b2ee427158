"""Router that is recurrent over depth.

Layerwise Recurrent Router for Mixture-of-Experts (RMoE; Qiu et al. 2024, arXiv 2408.06793): each layer
projects the experts' input x to u, one GRU shared by all layers takes the token's state from the layer below
to this layer's, and the scores come from the state,
    u = x P,  h_i = GRU(u, h_(i-1)),  h_0 = 0,  scores = softmax(h_i G),
with P and G of each layer. Nothing passes between tokens, and nothing is kept between decoding steps; layers
without a router leave the state as it is.

Differs from the paper: separate matrices for input and state, and biases, as in the released code (torch's
cell). `logit_residual` adds alpha times the logits that the layer below had of its own, one reading of the
ablation "r-alpha". Weights of the cell begin with the standard deviation W^(-1/2).
"""

import dataclasses

import jax
import jax.numpy as jnp

from moejax import weights
from moejax.config import require
from moejax.routers.score.base import logits, score_dtype
from moejax.seams import Scorer
from moejax.specs import Constant, Normal, Spec


def _gru(u, h, state):
    """Gates from the input, gates from the state, the state: the new state."""
    (u_reset, u_keep, u_new), (h_reset, h_keep, h_new) = jnp.split(u, 3, -1), jnp.split(h, 3, -1)
    new = jnp.tanh(u_new + jax.nn.sigmoid(u_reset + h_reset) * h_new)
    keep = jax.nn.sigmoid(u_keep + h_keep)
    return (1 - keep) * new + keep * state


def _rnn(u, h, state):
    return jnp.tanh(u + h)


def _lstm(u, h, state):
    """The state is the output beside the cell."""
    enter, keep, new, leave = jnp.split(u + h, 4, -1)
    cell = jax.nn.sigmoid(keep) * jnp.split(state, 2, -1)[1] + jax.nn.sigmoid(enter) * jnp.tanh(new)
    return jnp.concatenate([jax.nn.sigmoid(leave) * jnp.tanh(cell), cell], -1)


CELLS = {"gru": (_gru, 3, 1), "rnn": (_rnn, 1, 1), "lstm": (_lstm, 4, 2)}  # step, gates, states
RECURRENT = {
    "pass": lambda state: state,
    "detach": jax.lax.stop_gradient,
    "np": jnp.zeros_like,  # no passing: every layer starts from h_0
}


@dataclasses.dataclass(frozen=True)
class Recurrent(Scorer):
    width: int = 128  # W, of the state; eq. 1 calls it p
    cell: str = "gru"  # gru | rnn | lstm
    recurrent: str = "pass"  # pass | detach (no gradient between layers) | np (no state between layers)
    logit_residual: float = 0.0  # alpha, times the logits of the layer below

    shared = "rmoe"
    reads = frozenset({"x_BTD", "memory", "shared"})

    def __post_init__(self):
        require(self.width >= 1, f"scorer.width={self.width} must be at least 1")
        for name, known in (("cell", CELLS), ("recurrent", RECURRENT)):
            value = getattr(self, name)
            require(value in known, f"scorer.{name}={value!r} is not one of {', '.join(known)}")

    def specs(self, m, num_experts: int):
        W = self.width
        return {
            "project": Spec((m.width, W), ("embed", None), Normal(m.width**-0.5), m.param_dtype),
            "w": Spec((W, num_experts), (None, None), Normal(W**-0.5), m.param_dtype),
        }

    def shared_specs(self, m, num_experts: int):
        W, gates = self.width, CELLS[self.cell][1] * self.width
        matrix = Spec((W, gates), (None, None), Normal(W**-0.5), m.param_dtype)
        bias = Spec((gates,), (None,), Constant(0.0), m.param_dtype)
        return {"input": matrix, "input_bias": bias, "state": matrix, "state_bias": bias}

    def carry_specs(self, m, num_experts: int):
        dtype = str(score_dtype(m.dtype))
        specs = {"rmoe": Spec((CELLS[self.cell][2] * self.width,), (None,), Constant(0.0), dtype)}
        if self.logit_residual:
            specs["rmoe_logits"] = Spec((num_experts,), (None,), Constant(0.0), dtype)
        return specs

    def score(self, p, i):
        before_BTX = RECURRENT[self.recurrent](i.memory.carry["rmoe"])
        state_BTX = self._step(p, i.shared[self.shared], i.x_BTD, before_BTX)  # X: output and cell of an LSTM
        own_BTE = logits(state_BTX[..., : self.width], p["w"])
        carry, logit_BTE = i.memory.carry | {"rmoe": state_BTX}, own_BTE
        if self.logit_residual:
            below_BTE = i.memory.carry["rmoe_logits"]
            below_BTE = jax.lax.stop_gradient(below_BTE) if self.recurrent == "detach" else below_BTE
            carry, logit_BTE = carry | {"rmoe_logits": own_BTE}, own_BTE + self.logit_residual * below_BTE
        return logit_BTE, jax.nn.softmax(logit_BTE), i.memory.replace(carry=carry)

    def _step(self, p, shared, x_BTD, state_BTX):
        """The token's state after this layer."""
        step, _, _ = CELLS[self.cell]
        u_BTW = weights.einsum("BTD,DW->BTW", x_BTD.astype(state_BTX.dtype), p["project"])
        h_BTW = state_BTX[..., : self.width]
        gates = lambda x_BTW, name: (
            weights.einsum("BTW,WX->BTX", x_BTW, shared[name])
            + shared[f"{name}_bias"].astype(x_BTW.dtype)[None, None]
        )
        return step(gates(u_BTW, "input"), gates(h_BTW, "state"), state_BTX)
