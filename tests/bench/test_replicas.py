"""Seeds side by side: what is noted on the way, what is found again, and that a seed is its own."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import base
from moejax.attention.gqa import Gqa
from moejax.bench import domains, replicas
from moejax.bench.paper import Inputs
from moejax.bench.replicas import Watch
from moejax.config import MeshConfig
from moejax.errors import UsageError

STEPS, EVERY = 6, 2


@pytest.fixture(scope="module")
def text():
    return domains.prepare(Inputs(), vocab=300, seq_len=16, most_bytes=1 << 14)


def run():
    model = base.mixtral(300, Gqa(num_heads=2, num_kv_heads=1, head_width=4), base.moe(4, 8, 2), layers=1)
    train = dataclasses.replace(base.tiny().train, steps=STEPS, batch_rows=4, seq_len=16)
    return dataclasses.replace(base.tiny(), model=model, train=train)


def see(params):
    return {"embed": params["embed"]}


def test_notes_end_with_the_model_and_are_found_again(text, tmp_path):
    watch = Watch("table", EVERY, see)
    first, second = replicas.train(run(), text, (0, 1), str(tmp_path), watch)
    assert first.seen["embed"].shape[0] == STEPS // EVERY and first.loss_S.shape == (STEPS,)
    np.testing.assert_array_equal(first.seen["embed"][-1], first.model.params["embed"])
    assert np.abs(first.seen["embed"][0] - first.seen["embed"][-1]).max() > 0
    assert np.abs(first.seen["embed"][0] - second.seen["embed"][0]).max() > 0
    again = replicas.train(run(), text, (1,), str(tmp_path), watch)[0]
    assert (again.seconds, again.held_out) == (second.seconds, second.held_out)
    jax.tree.map(np.testing.assert_array_equal, again.seen, second.seen)
    jax.tree.map(np.testing.assert_array_equal, again.model.params, second.model.params)


@pytest.mark.parametrize(("every", "size"), [(30, 15), (20, 20), (7, 7), (1, 1)])
def test_a_call_ends_where_something_is_noted(every, size):
    calls = replicas._calls(60, Watch("", every, see))
    assert {count for _, count in calls} <= {size, 60 % size} and sum(count for _, count in calls) == 60
    ends = {first + count for first, count in calls}
    assert set(range(every, 61, every)) <= ends


def test_what_cannot_be_is_refused(text):
    meshed = dataclasses.replace(run(), mesh=MeshConfig(data=2))
    with pytest.raises(UsageError, match="tiny has a mesh; replicas have a device each"):
        replicas.train(meshed, text, (0,), None)
    longer = dataclasses.replace(run(), train=dataclasses.replace(run().train, seq_len=32))
    with pytest.raises(UsageError, match=r"train.seq_len=32, but the text's rows have 16 tokens"):
        replicas.train(longer, text, (0,), None)
