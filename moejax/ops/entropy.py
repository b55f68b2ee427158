"""How undecided a distribution is."""

import math

import jax.numpy as jnp
from jax.scipy.special import xlogy

from moejax.config import require


def check_index(q: float, eps: float) -> None:
    """Refuse an entropic index at which `tsallis` has no useful value or slope."""
    require(
        q > 0 and (q == 1 or abs(q - 1) >= 0.05 or eps == 0),
        f"q={q} with eps={eps}: near q = 1 the error of eps grows as eps/(q - 1); choose q = 1, a q at least "
        "0.05 away from it, or eps = 0",
    )
    require(eps > 0 or q >= 1, f"q={q} with eps={eps} has an infinite slope at 0; choose eps > 0 or q >= 1")


def tsallis(p_BTE, q: float = 1.1, eps: float = 1e-5):
    """Tsallis entropy (1 - sum p^q) / (q - 1) over the last dim, divided by its maximum; q = 1 is Shannon's.

    `eps` is added to every p first, without renormalising, as in DynMoLE's code (arXiv 2504.00661).
    """
    E = p_BTE.shape[-1]
    p_BTE = p_BTE + eps
    if E == 1:
        return jnp.zeros_like(p_BTE[..., 0])
    if q == 1:
        return -jnp.sum(xlogy(p_BTE, p_BTE), axis=-1) / math.log(E)
    most = (1 - E ** (1 - q)) / (q - 1)  # at the uniform distribution
    return (1 - jnp.sum(p_BTE**q, axis=-1)) / (q - 1) / most
