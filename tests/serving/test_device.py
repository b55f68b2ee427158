"""Plans on a device: tokens that the host does not know yet, rows that wait between layers."""

import dataclasses

import jax
import numpy as np
import pytest

import moejax
from configs import read_me, rmoe
from moejax import sharding
from moejax.config import MeshConfig
from moejax.errors import UsageError
from moejax.ops.rope import LongRope
from moejax.serving import device
from moejax.serving.batch import answer, has_pages
from moejax.serving.device import Device, Sizes
from moejax.serving.pages import Pages
from moejax.serving.plan import Plan, make_plan
from moejax.serving.request import Sampling, make_request
from moejax.serving.schedulers.chunked import Chunked
from moejax.serving.state import Job, ServeState
from moejax.training.data.tokenizer import byte_tokenizer

SIZES = Sizes(num_slots=4, num_pages=24, page_size=8, rows=(32,))
PARKING = dataclasses.replace(SIZES, num_parked=32)
GREEDY = Sampling(max_tokens=8, temperature=0.0, logprobs=0)


def made(cfg) -> moejax.Model:
    """Untrained and untied, because with tied embeddings it only repeats itself."""
    cfg = dataclasses.replace(cfg, tied=False)
    return moejax.Model(cfg, moejax.init(jax.random.key(0), cfg), byte_tokenizer(), context=32)


def test_a_router_that_reads_tokens_reads_those_that_the_host_does_not_know_yet():
    model = made(read_me.tiny().model)
    own = [make_request(model, prompt, GREEDY) for prompt in ("def f(x):", "a", "import os")]
    done = dict(answer(model, own, Chunked(8), SIZES))
    wanted = moejax.generate(model, [one.tokens for one in own], max_tokens=8, logprobs=0)
    for i, one in enumerate(wanted):
        assert done[i].tokens == one.tokens
        near = zip(done[i].logprobs, one.logprobs, strict=True)
        assert all(abs(here.log_prob - there.log_prob) < 1e-5 for here, there in near)


def test_rows_of_a_slot_that_was_left_do_not_wait_between_layers(model):
    machine, state = Device(model, PARKING), ServeState(4, Pages(24, 8), num_layers=2)
    long, short = (Job(i, request.tokens, 1, settings=GREEDY) for i, request in enumerate(
        make_request(model, [5] * length, GREEDY) for length in (30, 3)))  # fmt: skip
    state.waiting.extend([short, long])
    other, run = state.admit(short), state.admit(long)
    for number in range(2):
        machine.begin(long, run.slot)
        machine.submit(make_plan(number, [state.rows(run, 30, stop=1)], state, 32))  # of 32 places
        if number == 0:
            state.preempt(run)
            state.finish(other)
            run = state.admit(long)
            assert run.slot == other.slot


def test_places_of_rows_between_layers_by_hand():
    """Positions 4 and 5 of slot 1 wait in places 0 and 1; of slot 0, position 2 takes what is left."""
    parking = device._Parking(room=3, length=10)

    def places(*rows, left=()):
        slot_J, pos_J, first_J, stop_J = np.array([*rows, (-1, 0, 0, 0)]).T
        page_QP = np.array([[-1 if slot in left else 0] for slot in range(2)])
        return parking.places(plan_of(slot_J, pos_J, first_J, stop_J, page_QP), num_layers=2).tolist()

    assert places((1, 4, 0, 1), (1, 5, 0, 1), (0, 0, 0, 2)) == [0, 1, 3, 3]
    assert places((1, 5, 1, 2), (0, 2, 0, 1), (1, 4, 1, 2)) == [1, 2, 0, 3]
    assert places((0, 2, 1, 2), (1, 6, 0, 1), (1, 7, 0, 1)) == [2, 0, 1, 3]
    with pytest.raises(UsageError, match="more than num_parked=3 rows are between layers"):
        places((0, 3, 0, 1), (0, 4, 0, 1))
    assert places((0, 3, 0, 1), (0, 4, 0, 1), left=[1]) == [0, 1, 3]


def plan_of(slot_J, pos_J, first_J, stop_J, page_QP) -> Plan:
    unread = dict.fromkeys(("token_J", "source_J", "emit_J"))
    return Plan(id=0, slot_J=slot_J, pos_J=pos_J, first_J=first_J, stop_J=stop_J, page_QP=page_QP,
                works=(), **unread)  # fmt: skip


def test_what_tokens_carry_from_layer_to_layer_cannot_wait_there():
    model = made(rmoe.tiny().model)
    with pytest.raises(UsageError, match=r"carry rmoe from layer to layer.*other than layered"):
        Device(model, PARKING)
    Device(model, SIZES)


def test_a_mesh_is_refused(model):
    mesh = sharding.make_mesh(MeshConfig(data=8))
    with jax.set_mesh(mesh), pytest.raises(UsageError, match="the engine serves on one device"):
        Device(model, SIZES)


def test_frequencies_by_the_size_of_a_request_have_no_pages(model):
    (group,) = model.cfg.groups
    (block,) = group.blocks
    scaling = LongRope((1.0,) * 8, (2.0,) * 8, original=32)
    block = dataclasses.replace(block, attn=dataclasses.replace(block.attn, rope_scaling=scaling))
    cfg = dataclasses.replace(model.cfg, groups=(dataclasses.replace(group, blocks=(block,)),))
    assert has_pages(model) and not has_pages(dataclasses.replace(model, cfg=cfg))
