"""Slots sorted by expert, and what experts see of them."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from moejax.dispatch.sort import by_expert, run_sorted

X_ND = jnp.array([[1.0], [2.0]])
EXPERT_NK = jnp.array([[1, 0], [0, 2]])  # expert 2 of two is nowhere


def test_experts_see_their_rows_in_order():
    """Expert sizes (2, 1); rows reach them as tokens 0, 1 | 0, and the empty slot last."""
    seen = {}

    def experts(p, rows_RD, size_E):
        seen.update(rows=rows_RD[:, 0].tolist(), sizes=size_E.tolist())
        return 10 * rows_RD

    y_ND = run_sorted(experts, {}, X_ND, EXPERT_NK, jnp.array([[0.5, 0.25], [1.0, 1.0]]), 2)
    assert seen == {"rows": [1, 2, 1, 2], "sizes": [2, 1]}
    np.testing.assert_array_equal(y_ND[:, 0], [7.5, 20.0])


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
