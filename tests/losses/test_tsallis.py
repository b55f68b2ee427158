"""DynMoLE's losses by hand."""

import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.losses.tsallis import KeptMassBalance, TsallisEntropy
from tests.losses import seen
from tests.ops.test_entropy import FIVE

KEPT = (2, 6, 6, 2, 2)  # experts of each token


def five(tokens=slice(None), padded: int = 0):
    """(the router's decision, batch) of some of the five tokens, their gates the kept probabilities."""
    p_TE = FIVE[tokens]
    order_TE = np.argsort(-p_TE, axis=-1, kind="stable")
    count_T1 = np.array(KEPT)[tokens][:, None]
    expert_TE = np.where(np.arange(6) < count_T1, order_TE, 6)
    expert_TE = np.concatenate([expert_TE, np.full((padded, 6), 6)])
    p_TE = np.concatenate([p_TE, np.full((padded, 6), 0.5)])
    gate_TE = np.take_along_axis(p_TE, np.minimum(expert_TE, 5), -1) * (expert_TE < 6)
    routing = seen.routing(expert_TE[None], p_TE[None]).replace(gate_BTK=np.float32(gate_TE[None]))
    return routing, seen.batch((np.arange(len(p_TE)) < len(p_TE) - padded)[None])


def test_five_tokens_of_one_router_by_hand():
    routing, batch = five()
    entropy, balance = (
        seen.value(loss, ([routing], batch)) for loss in (TsallisEntropy(), KeptMassBalance())
    )
    assert entropy == pytest.approx(0.711278, abs=1e-6)
    assert balance == pytest.approx(1.769136, rel=1e-6)
    assert TsallisEntropy().weight * entropy + KeptMassBalance().weight * balance == pytest.approx(
        0.00888192, rel=1e-5
    )


@pytest.mark.parametrize("loss", [TsallisEntropy(), KeptMassBalance()])
def test_padding_and_cuts_change_nothing(loss):
    parts = [five(slice(0, 2), padded=2), five(slice(2, 5))]
    whole = float(seen.value(loss, ([five()[0]], five()[1])))
    assert seen.value(loss, *(([routing], batch) for routing, batch in parts)) == pytest.approx(
        whole, rel=1e-6
    )


def test_layers_are_averaged_before_the_product():
    """Two layers that each collapse onto an expert of their own: E = 2 each by itself, 1 together."""
    layers = [seen.routing(np.full((1, 3, 1), e), np.eye(2)[np.full((1, 3), e)]) for e in (0, 1)]
    batch = seen.batch(np.ones((1, 3)))
    assert seen.value(KeptMassBalance(), (layers, batch)) == pytest.approx(1.0)
    assert seen.value(KeptMassBalance(), (layers[:1], batch)) == pytest.approx(2.0)


def test_an_index_near_one_is_refused():
    with pytest.raises(UsageError, match=r"q=1\.01"):
        TsallisEntropy(q=1.01)
