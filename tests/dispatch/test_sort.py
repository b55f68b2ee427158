"""The two permutations by hand, and that each one's backward pass is the other."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from moejax.dispatch.sort import by_expert, permute, run_sorted, unpermute

X_ND = jnp.array([[1.0], [2.0]])
EXPERT_NK = jnp.array([[1, 0], [0, 2]])  # expert 2 of two is nowhere
ORDER_R = jnp.array(
    [1, 2, 0, 3]
)  # flat slots: tokens 0 and 1 for expert 0, token 0 for expert 1, an empty one
HOME_NK = jnp.array([[2, 0], [1, 3]])


def test_two_tokens_by_hand():
    rows_RD = permute(X_ND, ORDER_R, HOME_NK)
    np.testing.assert_array_equal(rows_RD[:, 0], [1, 2, 1, 2])
    np.testing.assert_array_equal(unpermute(rows_RD, ORDER_R, HOME_NK)[..., 0], [[1, 1], [2, 2]])


def test_experts_see_their_rows_in_order():
    """Expert sizes (2, 1); rows reach them as tokens 0, 1 | 0, and the empty slot last."""
    seen = {}

    def experts(p, rows_RD, size_E):
        seen.update(rows=rows_RD[:, 0].tolist(), sizes=size_E.tolist())
        return 10 * rows_RD

    y_ND = run_sorted(experts, {}, X_ND, EXPERT_NK, jnp.array([[0.5, 0.25], [1.0, 1.0]]), 2)
    assert seen == {"rows": [1, 2, 1, 2], "sizes": [2, 1]}
    np.testing.assert_array_equal(y_ND[:, 0], [7.5, 20.0])


def test_backward_passes_equal_those_of_plain_indexing():
    slope = lambda f, *more: jax.grad(lambda x: jnp.sum(jnp.sin(f(x, *more))))
    rows_RD = jnp.arange(1.0, 5.0)[:, None]
    plain_permute = slope(lambda x_ND: x_ND[ORDER_R // 2])(X_ND)
    plain_unpermute = slope(lambda rows_RD: rows_RD[HOME_NK])(rows_RD)
    np.testing.assert_allclose(slope(permute, ORDER_R, HOME_NK)(X_ND), plain_permute, rtol=1e-6)
    np.testing.assert_allclose(slope(unpermute, ORDER_R, HOME_NK)(rows_RD), plain_unpermute, rtol=1e-6)


BY_EXPERT = jax.jit(by_expert, static_argnums=1)


@hypothesis.settings(max_examples=200, deadline=None, database=None)
@hypothesis.given(expert_NK=hnp.arrays(np.int32, (5, 3), elements=st.integers(0, 4), fill=st.integers(0, 4)))
def test_every_full_slot_has_one_place_among_the_rows_of_its_expert(expert_NK):
    """Slots of one expert keep their order; those of expert 4 of four are nowhere, past all others."""
    order_R, home_NK, size_E = map(np.asarray, BY_EXPERT(jnp.array(expert_NK), 4))
    slots = [slot for e in range(5) for slot in np.flatnonzero(expert_NK.reshape(-1) == e)]
    np.testing.assert_array_equal(order_R, slots)
    np.testing.assert_array_equal(size_E, np.bincount(expert_NK.reshape(-1), minlength=5)[:4])
    is_full_NK = expert_NK < 4
    np.testing.assert_array_equal(home_NK[~is_full_NK], 15)
    np.testing.assert_array_equal(order_R[home_NK[is_full_NK]], np.flatnonzero(is_full_NK))


def test_a_place_past_the_end_is_nowhere():
    """What is brought back from there is zero, and NaN there has no gradient."""
    home_NK = jnp.array([[2, 0], [1, 4]])
    rows_RD = jnp.array([[1.0], [2.0], [3.0], [jnp.nan]])
    np.testing.assert_array_equal(unpermute(rows_RD, ORDER_R, home_NK)[..., 0], [[3, 1], [2, 0]])
    _, pull = jax.vjp(lambda x_ND: permute(x_ND, ORDER_R, home_NK), X_ND)
    np.testing.assert_array_equal(pull(rows_RD)[0][:, 0], [4, 2])
