"""The recurrent router by hand, against torch's cells, and what passes between layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import specs as sp
from moejax.errors import UsageError
from moejax.routers.score.recurrent import Recurrent
from moejax.routers.select.top_k import TopK
from moejax.seams import Memory
from tests.contracts import tiny

EYE, SWAP = np.eye(2), np.array([[0, 0.5], [0.5, 0]])
NO_BIAS = np.zeros(6, np.float32)
CELL = {
    "input": np.concatenate([0.5 * EYE, EYE, np.diag([1.0, -1.0])], 1).astype(np.float32),
    "state": np.concatenate([0.1 * EYE, SWAP, 0.2 * EYE], 1).astype(np.float32),
    "input_bias": NO_BIAS,
    "state_bias": NO_BIAS,
}
ROUTER = {"project": EYE.astype(np.float32), "w": np.array([[1, 0, -1, 1], [0, 1, 1, -1]], np.float32)}


def layers(scorer, inputs, cell=CELL, routers=(ROUTER, ROUTER, ROUTER)):
    """Per layer (state, logits, scores) of one token with the given inputs."""
    batch = tiny.document([[0]])
    specs = scorer.carry_specs(tiny.model(width=2), 4)
    carry = sp.tree_map(lambda spec: jnp.zeros((1, 1, *spec.shape), spec.dtype), specs)
    seen = []
    for u_D, p in zip(inputs, routers, strict=False):
        i = tiny.route_in(np.array([[u_D]], np.float32), batch)
        i = i.replace(memory=Memory(carry, {}), shared={"rmoe": cell})
        logit_BTE, score_BTE, memory = scorer.score(p, i)
        carry = memory.carry
        seen.append(tuple(x[0, 0] for x in (carry["rmoe"], logit_BTE, score_BTE)))
    return seen


def test_published_states_and_routes():
    (h1, _, score1), (h2, _, score2) = layers(Recurrent(2), [[1, -1], [0.5, 0.5]])
    np.testing.assert_allclose(h1, [0.2048, 0.5568], atol=5e-5)
    np.testing.assert_allclose(h2, [0.2915, 0.2147], atol=5e-5)
    np.testing.assert_allclose(score1, [0.2408, 0.3423, 0.2789, 0.1380], atol=5e-5)
    np.testing.assert_allclose(score2, [0.2920, 0.2704, 0.2020, 0.2356], atol=5e-5)
    expert_BTK, gate_BTK, _ = TopK(2).select(
        {}, score1[None, None], score1[None, None], np.ones((1, 1), bool), None
    )
    assert expert_BTK.tolist() == [[[1, 2]]]
    np.testing.assert_allclose(gate_BTK[0, 0], [0.5510, 0.4490], atol=5e-5)


def test_without_passing_every_layer_is_the_first():
    inputs = [[1, -1], [0.5, 0.5]]
    first, second = layers(Recurrent(2, recurrent="np"), inputs)
    np.testing.assert_allclose(second[0], [0.1745, -0.1745], atol=5e-5)
    np.testing.assert_array_equal(first[0], layers(Recurrent(2), inputs)[0][0])


def test_a_cell_that_keeps_its_state_routes_uniformly():
    """A large bias on z: h stays 0, and the lowest experts win the tie."""
    bias = np.array([0, 0, 99, 99, 0, 0], np.float32)
    _, (state, _, score_E) = layers(Recurrent(2), [[1, -1], [3, 1]], CELL | {"input_bias": bias})
    np.testing.assert_array_equal(state, 0)
    np.testing.assert_array_equal(score_E, 0.25)


def test_the_layer_below_adds_its_own_logits():
    """Half of them, and not what that layer had itself been given."""
    inputs = [[1, -1], [0.5, 0.5], [-1, 0]]
    plain = [logit_E for _, logit_E, _ in layers(Recurrent(2), inputs)]
    got = [logit_E for _, logit_E, _ in layers(Recurrent(2, logit_residual=0.5), inputs)]
    np.testing.assert_allclose(got[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], plain[1] + 0.5 * plain[0], rtol=1e-5)
    np.testing.assert_allclose(got[2], plain[2] + 0.5 * plain[1], rtol=1e-5)


@pytest.mark.parametrize("cell", ["gru", "rnn", "lstm"])
def test_the_cells_are_those_of_torch(cell):
    torch = pytest.importorskip("torch", reason="compares with the peer; pip install -e .[peers]")
    rng = np.random.default_rng(0)
    theirs = {"gru": torch.nn.GRUCell, "rnn": torch.nn.RNNCell, "lstm": torch.nn.LSTMCell}[cell](3, 3)
    p = {
        "input": theirs.weight_ih.detach().numpy().T,
        "state": theirs.weight_hh.detach().numpy().T,
        "input_bias": theirs.bias_ih.detach().numpy(),
        "state_bias": theirs.bias_hh.detach().numpy(),
    }
    inputs = rng.standard_normal((3, 3)).astype(np.float32)
    router = {"project": np.eye(3, dtype=np.float32), "w": np.ones((3, 4), np.float32)}
    state = None
    for u_W, (got, _, _) in zip(inputs, layers(Recurrent(3, cell), inputs, p, [router] * 3), strict=True):
        with torch.no_grad():
            state = theirs(torch.from_numpy(u_W[None]), state)
        want = torch.cat(state, -1) if cell == "lstm" else state
        np.testing.assert_allclose(got, want[0], rtol=1e-5, atol=1e-6)


def test_published_number_of_parameters():
    """L D p + L p E + 6 p^2, and 6 p biases; 0.47M for 8 layers of width 352."""
    m, scorer = tiny.model(width=352), Recurrent(128)
    biases = 2 * 3 * 128
    assert 8 * sp.count(scorer.specs(m, 16)) + sp.count(scorer.shared_specs(m, 16)) - biases == 475_136


def value_and_slopes(mode, num_layers):
    """(a score of the last layer, its slopes in the first layer's projection and in the cell's input)."""
    scorer, inputs = Recurrent(2, recurrent=mode), ([1, -1], [0.5, 0.5])[:num_layers]

    def last(project, weight):
        first = ROUTER | {"project": project}
        return layers(scorer, inputs, CELL | {"input": weight}, [first, ROUTER])[-1][2][0]

    return jax.jit(jax.value_and_grad(last, argnums=(0, 1)))(ROUTER["project"], CELL["input"])


def test_one_layer_is_the_same_in_every_mode():
    want = value_and_slopes("pass", 1)
    for mode in ("detach", "np"):
        tiny.close(value_and_slopes(mode, 1), want, 1e-6)


def test_the_gradient_reaches_the_layer_below_only_if_it_may():
    value, (below, cell) = value_and_slopes("pass", 2)
    detached_value, (detached_below, detached_cell) = value_and_slopes("detach", 2)
    _, (apart_below, _) = value_and_slopes("np", 2)
    np.testing.assert_allclose(detached_value, value, rtol=1e-6)
    assert np.abs(below).max() > 1e-3
    assert not np.asarray(detached_below).any() and not np.asarray(apart_below).any()
    assert np.abs(cell - detached_cell).max() > 1e-3


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match=r"scorer.cell='gpu' is not one of gru, rnn, lstm"):
        Recurrent(cell="gpu")
    with pytest.raises(UsageError, match=r"scorer.recurrent='on' is not one of pass, detach, np"):
        Recurrent(recurrent="on")
    with pytest.raises(UsageError, match=r"scorer.width=0 must be at least 1"):
        Recurrent(0)
