"""The state that schedulers change: admissions, layers, writers, preemption."""

import pytest

from moejax.errors import UsageError
from moejax.serving.pages import Pages
from moejax.serving.state import Job, ServeState


def state_of(*lengths, slots=4, pages=8, size=4, max_new=8) -> ServeState:
    """Requests of different prompts wait."""
    state = ServeState(slots, Pages(pages, size), num_layers=4)
    for id, length in enumerate(lengths):
        state.waiting.append(Job(id, tuple(range(10 * id, 10 * id + length)), max_new))
    return state


def test_one_request_by_hand():
    state = state_of(6, max_new=3)
    run = state.admit(state.waiting[0])
    assert (run.slot, run.left, run.end, len(run.pages)) == (0, 6, 8, 2) and not state.waiting
    assert state.write() == [], "it has not read yet"
    assert state.rows(run, 4)[1:] == (0, 4, 0, 4)
    assert state.read(100) == [(run, 4, 2, 0, 4)]
    assert state.write() == [(run, 6, 1, 0, 4)], "the second token; the first came with the last row"
    assert state.write() == [(run, 7, 1, 0, 4)]
    assert state.write() == [], "what the third token says is never read"
    state.finish(run)
    assert state.pages.used == 0 and not state.running and (state.page_QP == -1).all()


def test_layers_are_passed_in_order():
    state = state_of(6)
    run = state.admit(state.waiting[0])
    assert state.rows(run, 4, stop=1)[1:] == (0, 4, 0, 1)
    with pytest.raises(UsageError, match="4 positions are parked, not 2"):
        state.rows(run, 2)
    assert state.rows(run, 4, stop=3)[1:] == (0, 4, 1, 3)
    assert run.left == 6 and state.write() == []
    assert state.rows(run, 4)[1:] == (0, 4, 3, 4)
    assert run.left == 2


def test_pages_are_found_once_a_step_is_to_fill_them_in_all_layers():
    state = ServeState(4, Pages(8, 2), num_layers=2)
    for id in range(4):
        state.waiting.append(Job(id, (1, 2, 3, 4, 5 + id), 1))
    a = state.admit(state.waiting[0])
    state.rows(a, 4, stop=1)
    b = state.admit(state.waiting[0])
    state.rows(a, 4)
    c = state.admit(state.waiting[0])
    assert (a.shared, b.shared, c.shared) == (0, 0, 4)
    assert c.pages[:2] == a.pages[:2] and c.pages[2] != a.pages[2]


def test_a_written_page_is_found_when_its_text_is_known():
    state = ServeState(2, Pages(8, 2), num_layers=1)
    state.waiting.append(Job(0, (1, 2, 3), 8))
    run = state.admit(state.waiting[0])
    state.read(3)
    state.write()  # position 3, whose token no result has told yet
    assert run.public == 1
    run.text.append(9)
    state.write()
    assert run.public == 2
    state.waiting.append(Job(1, (1, 2, 3, 9, 0), 1))
    assert state.admit(state.waiting[0]).shared == 4


def test_a_whole_prompt_in_the_cache_leaves_its_last_token():
    state = ServeState(2, Pages(8, 2), num_layers=1)
    state.waiting.extend(Job(id, (1, 2, 3, 4), 1) for id in range(2))
    state.read(4)
    assert state.admit(state.waiting[0]).shared == 2


def test_room_is_made_by_the_latest():
    state = state_of(4, 4, 4, pages=4)
    state.read(100)
    first, second, third = state.running.values()
    third.text.append(99)
    assert [work.run for work in state.write()] == [first, second]
    assert [job.id for job in state.waiting] == [2] and state.pages.available == 0
    second.text.append(98)
    first.planned, first.end = 8, 9
    assert [work.run for work in state.write()] == [first], "the second had to go as well"
    assert [job.id for job in state.waiting] == [1, 2]
    state.finish(first)
    assert state.length(state.waiting[0]) == 5
    again = state.admit(state.waiting[0])
    assert again.text == [10, 11, 12, 13, 98] and again.given == 5 and again.visit == 3
    assert again.end == second.end, "tokens from before count"


def test_who_needs_the_last_page_for_itself_goes():
    state = state_of(4, 4, pages=3)
    state.read(100)
    first, second = state.running.values()
    assert [work.run for work in state.write()] == [first]
    assert second.job in state.waiting


def test_spare_pages_are_for_those_that_run():
    state = state_of(4, 4, pages=3)
    assert state.admit(state.waiting[0], spare=3) is not None, "nobody else runs"
    assert state.admit(state.waiting[0], spare=2) is None
    assert state.pages.available == 2 and len(state.waiting) == 1
    assert state.admit(state.waiting[0], spare=1) is not None


def test_no_slot_no_admission():
    state = state_of(1, 1, slots=1)
    assert state.admit(state.waiting[0]) and state.admit(state.waiting[0]) is None
    assert state.free_slots == 0


def test_what_fits():
    state = ServeState(1, Pages(2, 4), 1)
    assert state.fits(Job(0, (1,) * 8, 1)) and state.fits(Job(0, (1,), 8))
    assert not state.fits(Job(0, (1,) * 8, 2))


def test_the_page_table_grows():
    state = state_of(4, 21, size=2, pages=20)
    a, b = (state.admit(state.waiting[0]) for _ in range(2))
    assert state.page_QP[a.slot].tolist()[:3] == [*a.pages, -1]
    assert state.page_QP[b.slot].tolist()[:11] == b.pages
