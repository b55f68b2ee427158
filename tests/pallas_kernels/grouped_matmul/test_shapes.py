"""Group sizes of the benchmark distributions."""

import pytest

from pallas_kernels.grouped_matmul import shapes


def test_seven_rows_over_three_groups_by_hand():
    assert shapes.uniform(7, 3).tolist() == [2, 2, 3]
    # 7 * (6/11, 3/11, 2/11), cut to 3, 1, 1; the first gets the two that are left
    assert sorted(shapes.zipf(7, 3).tolist()) == [1, 1, 5]
    assert shapes.one_hot(7, 3).tolist() == [0, 7, 0]


@pytest.mark.parametrize("distribution", shapes.DISTRIBUTIONS.values())
@pytest.mark.parametrize("shape", (*shapes.TINY, *shapes.SMALL, *shapes.PUBLISHED), ids=lambda s: s.name)
def test_sizes_sum_to_the_rows(distribution, shape):
    sizes = distribution(shape.M, shape.G)
    assert sizes.shape == (shape.G,)
    assert sizes.sum() == shape.M
    assert sizes.min() >= 0
