"""Loads of the program: what a perfect cache saves of them is the closed form."""

import numpy as np
import pytest

from moejax.bench.papers.batchllm import closed_form, in_order, saved, shuffled
from moejax.bench.serving_outcome import Outcome
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


def test_who_comes_back_saves_nothing():
    """Two prompts of 18 tokens; one lost its slot, began again with 18, and found 16 pages of its own."""
    jobs = shuffled([(0,) * 16], [(1, 0), (2, 0)], 1, seed=0)
    none = np.zeros(0)
    once = Outcome(none, none, 0, 1.0, 1, prompt_tokens=36, found_tokens=16, loads=0, restarts=0)
    twice = Outcome(none, none, 0, 1.0, 1, prompt_tokens=54, found_tokens=32, loads=0, restarts=1)
    assert saved(once, jobs) == pytest.approx(closed_form(16, 2, 2)) == pytest.approx(16 / 36)
    assert saved(twice, jobs) == pytest.approx(14 / 36), "two tokens were read again"
