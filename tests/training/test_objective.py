"""What the objective costs: FLOPs counted in the compiled program, loops multiplied out."""

import functools

import jax

from moejax.analysis.flops import count
from moejax.config import BlockConfig
from moejax.ffn.dense import Dense
from moejax.losses.balance import GlobalBalance, SequenceBalance
from moejax.losses.loss_free import LossFreeBias
from moejax.losses.next_token import NextToken
from moejax.losses.z_loss import RouterZ
from moejax.model import forward as model
from moejax.training import objective
from moejax.training.router_meter import RouterMeter
from tests.contracts import tiny

ROWS, T = 4, 4
BATCH = tiny.batch(0, ROWS, T)
LINEAR = (NextToken(), RouterZ(), SequenceBalance(), LossFreeBias(), RouterMeter())


def matmul_flops(f, *args) -> int:
    """Of one run, with as many rows for every expert."""
    return count(jax.jit(f, compiler_options=tiny.QUICK_COMPILE).lower(*args).compile()).matmul_flops


@functools.lru_cache
def step_flops(losses, accumulate, ffn=tiny.MOE) -> int:
    m = tiny.model(BlockConfig(tiny.ATTN, ffn))
    states = tuple(loss.init(m) for loss in losses)
    run = lambda params, batch: objective.value_and_grad(params, m, losses, states, batch, None, accumulate)
    return matmul_flops(run, tiny.params(m), BATCH)


def forward_flops(rows: int) -> int:
    m, batch = tiny.model(BlockConfig(tiny.ATTN, tiny.MOE)), tiny.batch(0, rows, T)
    return matmul_flops(
        lambda params, batch: model.forward(params, m, batch).hidden_BTD, tiny.params(m), batch
    )


def test_accumulation_costs_the_same_products():
    """A dense model, so that every product is known: micro-batches split the work and add none."""
    whole, cut = (step_flops((NextToken(),), accumulate, Dense(8)) for accumulate in (1, 2))
    assert cut == whole


def test_the_first_pass_is_removed_for_losses_linear_in_their_sums():
    """With it, the same program counts half again as much."""
    alone = step_flops((NextToken(),), 2)
    assert step_flops(LINEAR, 2) == alone


def test_a_global_balance_costs_one_more_forward_pass():
    """Of both micro-batches, without the unembedding, which tells nobody who was chosen."""
    extra = step_flops((NextToken(), GlobalBalance()), 2) - step_flops((NextToken(),), 2)
    assert extra == 2 * forward_flops(ROWS // 2)
