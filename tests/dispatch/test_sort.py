"""The two permutations by hand, and that each one's backward pass is the other."""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.dispatch.sort import permute, run_sorted, unpermute

X_ND = jnp.array([[1.0], [2.0]])
EXPERT_NK = jnp.array([[1, 0], [0, 2]])  # expert 2 of two is nowhere
ORDER_R = jnp.array([1, 2, 0, 3])  # flat slots by expert: token 0 and 1 for expert 0, token 0 for 1, an empty one
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
    plain_permute = lambda x_ND: x_ND[ORDER_R // 2]
    plain_unpermute = lambda rows_RD: rows_RD[HOME_NK]
    for own, plain, size in ((permute, plain_permute, 2), (unpermute, plain_unpermute, 4)):
        x = jnp.arange(1.0, size + 1)[:, None]
        square = lambda f, *more: jax.grad(lambda x: jnp.sum(jnp.sin(f(x, *more))))
        np.testing.assert_allclose(square(own, ORDER_R, HOME_NK)(x), square(plain)(x), rtol=1e-6)
