"""The union of experts on any NVIDIA GPU, in the portable form of Pallas (lowered to Triton).

Two kernels. In the first a program takes an expert and a block of its width: where no token has a weight for
the expert it ends at once, otherwise it writes the weighted hidden values of all tokens. In the second a
program takes a block of the model's width and a few neighbouring experts, and adds up those of the union.
Their sums are added in the order of the experts, whichever are active, so that no token's result depends on
what the others chose.

Floor: 2 or 3 D F numbers per expert of the union; 4 or 6 N D F FLOPs on them.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.triton_blocks import Part, block, load, store
from pallas_kernels.union_experts.reference import weighted
from pallas_kernels.varying import like

PLATFORM = "cuda"
DTYPES = tuple(map(jnp.dtype, (jnp.bfloat16, jnp.float16, jnp.float32)))
LEAST_TOKENS, MOST_TOKENS = 16, 64  # of a product on the tensor cores; of the registers of a program
DEPTH = {2: 128, 4: 32}  # contracted at a time, by bytes of a number
WIDTH, OUT_WIDTH = 32, 64
MANY_PROGRAMS = 264  # two for each core of a large chip


def refusal(function, x_ND, weight_NE, up_EDF, down_EFD, *gates, **static) -> str | None:
    """Why these operands cannot be served, or None."""
    dtypes = {jnp.dtype(x.dtype) for x in (x_ND, up_EDF, down_EFD, *gates)}
    if not dtypes <= set(DTYPES) or len(dtypes) > 1:
        names = ", ".join(dtype.name for dtype in DTYPES)
        return f"it multiplies {names}, all operands alike, not {', '.join(sorted(map(str, dtypes)))}"
    if len(x_ND) > MOST_TOKENS:
        return f"{len(x_ND)} tokens are more than {MOST_TOKENS}"
    return None


def apply(x_ND, weight_NE, up_EDF, down_EFD, *gates, activation) -> jax.Array:
    """See `reference.apply`."""
    (N, D), (E, _, F) = x_ND.shape, up_EDF.shape
    options = pltriton.CompilerParams(num_warps=4, num_stages=3)
    active_E = jnp.any(weight_NE != 0, axis=0).astype(jnp.int32)
    weight_NE = weight_NE.astype(jnp.float32)
    hidden = pl.pallas_call(
        functools.partial(_hidden_kernel, activation=activation),
        like(x_ND, (E, N, F), x_ND.dtype),
        grid=(E, pl.cdiv(F, WIDTH)),
        compiler_params=options,
        name="union_hidden",
    )
    h_ENF = hidden(active_E, x_ND, weight_NE, up_EDF, *gates)
    wide = pl.cdiv(D, OUT_WIDTH)
    parts = min(E, pl.cdiv(MANY_PROGRAMS, wide))
    down = pl.pallas_call(
        functools.partial(_down_kernel, experts=pl.cdiv(E, parts)),
        like(x_ND, (parts, N, D), jnp.float32),
        grid=(wide, parts),
        compiler_params=options,
        name="union_down",
    )
    y_ND = jnp.sum(down(active_E, h_ENF, weight_NE, down_EFD), axis=0)
    return y_ND.astype(x_ND.dtype)


def _tokens(N: int) -> Part:
    """All tokens, in a block that is large enough for the tensor cores."""
    size = max(pl.next_power_of_2(N), LEAST_TOKENS)
    return Part(0, size, N if size > N else None)


def _dot(left, right):
    exact = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.dot(left, right, precision=exact, preferred_element_type=jnp.float32)


def _hidden_kernel(active_E, x, weight, *refs, activation: str):
    """The weighted hidden values of one expert, for a block of its width."""
    *wide, h = refs
    expert, (N, D), F = pl.program_id(0), x.shape, h.shape[2]
    tokens, columns = _tokens(N), block(pl.program_id(1), WIDTH, F)
    depth = DEPTH[x.dtype.itemsize]

    @pl.when(active_E[expert] > 0)
    def _():
        def add_step(step, sums):
            terms = block(step, depth, D)
            x_NK = load(x, tokens, terms)
            return tuple(
                s + _dot(x_NK, load(m, expert, terms, columns)) for s, m in zip(sums, wide, strict=True)
            )

        zero = jnp.zeros((tokens.size, WIDTH), jnp.float32)
        sums = lax.fori_loop(0, pl.cdiv(D, depth), add_step, (zero,) * len(wide))
        weight_N1 = load(weight, tokens, expert)[:, None]
        store(h, weighted(*sums, weight=weight_N1, activation=activation), expert, tokens, columns)


def _down_kernel(active_E, h, weight, down, y, *, experts: int):
    """A block of the model's width, summed over some neighbouring experts."""
    (E, N, F), D = h.shape, y.shape[2]
    tokens, columns = _tokens(N), block(pl.program_id(0), OUT_WIDTH, D)
    part, depth = pl.program_id(1), DEPTH[h.dtype.itemsize]

    def add_expert(i, sum_ND):
        expert = jnp.minimum(part * experts + i, E - 1)
        wanted = (active_E[expert] > 0) & (part * experts + i < E)

        def add_step(step, sum_ND):
            terms = block(step, depth, F)
            return sum_ND + _dot(load(h, expert, tokens, terms), load(down, expert, terms, columns))

        steps = wanted.astype(jnp.int32) * pl.cdiv(F, depth)
        one_ND = lax.fori_loop(0, steps, add_step, jnp.zeros_like(sum_ND))
        weight_N1 = load(weight, tokens, expert)[:, None]
        return sum_ND + jnp.where(weight_N1 != 0, one_ND, 0.0)

    zero_ND = jnp.zeros((tokens.size, OUT_WIDTH), jnp.float32)
    store(y, lax.fori_loop(0, experts, add_expert, zero_ND), part, tokens, columns)
