"""A plan's columns by hand."""

import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.serving.pages import Pages
from moejax.serving.plan import LAST, PARKED, TOKEN, make_plan
from moejax.serving.state import Job, ServeState


@pytest.fixture
def state():
    state = ServeState(3, Pages(8, 2), num_layers=2)
    state.waiting.extend((Job(0, (10, 11, 12), 4), Job(1, (20, 21), 4)))
    return state


def test_a_prompt_and_a_chunk(state):
    a = state.admit(state.waiting[0])
    state.rows(a, 3)
    b = state.admit(state.waiting[0])
    plan = make_plan(5, [state.rows(a, 1), state.rows(b, 1)], state, num_rows=4)
    assert plan.id == 5 and plan.num_rows == 2
    assert plan.token_J.tolist() == [0, 20, 0, 0]
    assert plan.source_J.tolist() == [LAST, TOKEN, TOKEN, TOKEN]
    assert plan.slot_J.tolist() == [a.slot, b.slot, -1, -1]
    assert plan.pos_J.tolist() == [3, 0, 0, 0]
    assert plan.first_J.tolist() == [0] * 4 and plan.stop_J.tolist() == [2, 2, 0, 0]
    assert plan.emit_J.tolist() == [True, False, False, False], "a chunk that is not the last one is silent"
    assert plan.page_QP[a.slot].tolist() == a.pages and plan.page_QP[b.slot].tolist() == [*b.pages, -1]
    assert all(
        x.dtype == np.int32 for x in (plan.token_J, plan.source_J, plan.slot_J, plan.pos_J, plan.page_QP)
    )


def test_layers_and_known_tokens(state):
    a = state.admit(state.waiting[0])
    low = make_plan(0, [state.rows(a, 3, stop=1)], state, 3)
    high = make_plan(1, [state.rows(a, 3)], state, 3)
    assert low.source_J.tolist() == [TOKEN] * 3 and high.source_J.tolist() == [PARKED] * 3
    assert high.first_J.tolist() == [1] * 3 and low.stop_J.tolist() == [1] * 3
    assert low.emit_J.tolist() == [False] * 3 and high.emit_J.tolist() == [False, False, True]
    a.text.append(77)
    known = make_plan(2, [state.rows(a, 1)], state, 1)
    assert (known.source_J[0], known.token_J[0]) == (TOKEN, 77)


def test_a_plan_keeps_its_pages(state):
    a = state.admit(state.waiting[0])
    plan = make_plan(0, [state.rows(a, 3)], state, 3)
    held = list(a.pages)
    state.preempt(a)
    assert plan.page_QP[a.slot].tolist() == held


def test_too_many_rows(state):
    work = state.rows(state.admit(state.waiting[0]), 3)
    with pytest.raises(UsageError, match="a step of 2 rows cannot take 3; lower the scheduler's budget"):
        make_plan(0, [work], state, 2)


def test_rows_of_nobody(state):
    work = state.rows(state.admit(state.waiting[0]), 3)
    state.preempt(work.run)
    with pytest.raises(UsageError, match=r"requests \[0\] are part of a step and have left their slots"):
        make_plan(0, [work], state, 3)


def test_nothing(state):
    plan = make_plan(0, [], state, 2)
    assert plan.slot_J.tolist() == [-1, -1] and not plan.emit_J.any()
