"""Loads of the program: what a perfect cache saves of them is the closed form."""

import pytest

from moejax.bench.papers.batchllm import closed_form, in_order, shuffled
from moejax.serving.schedulers.shared_prefix import prefix_groups, saving_ratio


@pytest.mark.parametrize(("degree", "ratio"), [(4, 2 / 3), (16, 5 / 6)])
def test_what_a_load_can_save(degree, ratio):
    """Questions of an eighth of their document's length: 67% and 83%."""
    documents = [(i,) * 16 for i in range(3)]
    jobs = shuffled(documents, [(100 + i, 0) for i in range(3 * degree)], 1, seed=0)
    prompts = [job.prompt for job in jobs]
    assert closed_form(16, 2, degree) == pytest.approx(ratio)
    found = saving_ratio(prefix_groups(prompts), [len(prompt) for prompt in prompts])
    assert found == pytest.approx(ratio)
    assert sorted(prompts) == [job.prompt for job in in_order(jobs)] != prompts
