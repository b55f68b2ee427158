"""The two permutations by hand, and that each one's backward pass is the other."""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.dispatch.sort import permute, run_sorted, unpermute

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
