"""Prompts that one engine reads and another writes on: the frame, what is refused, and two processes."""

import collections
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.errors import DataError, MoejaxError, RetryError, UsageError
from moejax.serving import hand_off
from moejax.serving.hand_off import Inbox, Parcel, digest
from moejax.serving.schedulers.fcfs import Fcfs
from moejax.serving.state import Job, ServeState
from tests.serving import hand_off_toy
from tests.serving.hand_off_toy import PagedToy, jobs_of, state_of
from tests.serving.toy import text_of

LAYOUT = {"k": ((2, 3), np.dtype(ml_dtypes.bfloat16)), "v": ((4,), np.dtype("int8"))}


def parcel_of(pages: int = 2, layout=LAYOUT) -> Parcel:
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(-9, 9, size=(pages, *shape)).astype(dtype)
        for name, (shape, dtype) in layout.items()
    }
    return Parcel(7, digest([1, 2, 3]), 41, arrays)


def frame(parcel: Parcel) -> bytes:
    stream = io.BytesIO()
    hand_off.send(stream, parcel)
    return stream.getvalue()


def test_a_frame_by_hand():
    """20 bytes of head; a page of 6 bfloat16 and 4 int8 is 16 bytes; 16 of digest."""
    data = frame(parcel_of(pages=1))
    size = int.from_bytes(data[8:12], "little")
    assert data[:8] == b"moejax.1" and int.from_bytes(data[12:20], "little") == 16
    described = [["k", "bfloat16", [1, 2, 3]], ["v", "int8", [1, 4]]]
    assert json.loads(data[20 : 20 + size]) == [7, digest([1, 2, 3]), 41, described]
    assert len(data) == 20 + size + 16 + 16


def test_what_is_sent_arrives():
    sent = [parcel_of(2), dataclasses.replace(parcel_of(0, {}), token=-1), parcel_of(5)]
    stream = io.BytesIO(b"".join(map(frame, sent)))
    for parcel in sent:
        found = hand_off.receive(stream, LAYOUT, 5)
        assert (found.job, found.prompt, found.token) == (parcel.job, parcel.prompt, parcel.token)
        assert found.pages.keys() == parcel.pages.keys()
        for name, x in parcel.pages.items():
            assert found.pages[name].dtype == x.dtype
            np.testing.assert_array_equal(found.pages[name], x)
    assert hand_off.receive(stream, LAYOUT, 5) is None


class Dribble(io.RawIOBase):
    """A pipe that gives and takes three bytes at a time."""

    def __init__(self, data=b""):
        self.data = bytearray(data)

    def readable(self):
        return True

    def writable(self):
        return True

    def readinto(self, buffer):
        part = self.data[: min(3, len(buffer))]
        buffer[: len(part)] = part
        del self.data[: len(part)]
        return len(part)

    def write(self, data):
        self.data += bytes(data[:3])
        return min(3, len(data))


def test_a_stream_that_gives_and_takes_little():
    stream = Dribble()
    hand_off.send(stream, parcel_of())
    found = hand_off.receive(stream, LAYOUT, 2)
    np.testing.assert_array_equal(found.pages["k"], parcel_of().pages["k"])


@pytest.mark.parametrize("at", [0, 9, 13, 30, -40, -20, -1])
def test_a_bit_that_fell_over(at):
    data = bytearray(frame(parcel_of()))
    data[at] ^= 1
    with pytest.raises(MoejaxError):
        hand_off.receive(io.BytesIO(bytes(data)), LAYOUT, 2)


@given(st.data())
def test_no_damage_passes(data):
    """Any bit, anywhere: never the parcel that was sent, and only errors that are addressed to people."""
    damaged = bytearray(frame(parcel_of()))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(MoejaxError):
        hand_off.receive(io.BytesIO(bytes(damaged)), LAYOUT, 2)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_parcel(data):
    with pytest.raises((DataError, RetryError)):
        hand_off.receive(io.BytesIO(b"?" + data), LAYOUT, 2)


@pytest.mark.parametrize("cut", [5, 25, -20, -1])
def test_a_stream_that_ends_within_a_parcel(cut):
    with pytest.raises(RetryError, match="went away within a parcel"):
        hand_off.receive(io.BytesIO(frame(parcel_of())[:cut]), LAYOUT, 2)


@pytest.mark.parametrize(
    "layout",
    [
        {"k": LAYOUT["k"]},
        LAYOUT | {"v": ((5,), np.dtype("int8"))},
        LAYOUT | {"v": ((4,), np.dtype("uint8"))},
        {"q": LAYOUT["k"], "v": LAYOUT["v"]},
    ],
)
def test_pages_of_another_model(layout):
    with pytest.raises(UsageError, match="run one model in both"):
        hand_off.receive(io.BytesIO(frame(parcel_of(layout=layout))), LAYOUT, 2)


def test_more_pages_than_there_is_room_for():
    with pytest.raises(UsageError, match=r"a request of \[\(3,\)\] pages arrives, at most 2 have room"):
        hand_off.receive(io.BytesIO(frame(parcel_of(3))), LAYOUT, 2)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b"{}",
        b'[1, "a", 2]',
        b'[true, "a", 2, []]',
        b'[1, "a", 2, [["k", "object", [1]]]]',
        b'[1, "a", 2, [["k", "float32", [-1]]]]',
        b'[1, "a", 2, [["k", "float32", [1e9]]]]',
        b'[1, "a", 2, [[["k"], "float32", [1]]]]',
        b'[1, "a", 2, [["k", ["float32"], [1]]]]',
        b"\xff\xfe",
    ],
    ids=range(10),
)
def test_headers_that_no_engine_writes(header):
    head = b"moejax.1" + len(header).to_bytes(4, "little") + bytes(8)
    with pytest.raises(DataError):
        hand_off.receive(io.BytesIO(head + header + bytes(64)), LAYOUT, 2)


def test_nothing_is_allocated_for_what_will_be_refused():
    """A frame that promises 2**40 bytes of pages."""
    header = json.dumps([1, "a", 2, [["k", "bfloat16", [2, 2, 3]], ["v", "int8", [2, 4]]]]).encode()
    head = b"moejax.1" + len(header).to_bytes(4, "little") + (2**40).to_bytes(8, "little")
    tracemalloc.start()
    with pytest.raises(DataError, match="says that it has 32"):
        hand_off.receive(io.BytesIO(head + header), LAYOUT, 2)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


class Post(collections.deque):
    """An inbox in memory."""

    def take(self, wait):
        assert self or not wait, "it would wait for ever"
        return self.popleft() if self else None


def read_all(jobs, ends=frozenset(), slots=3, pages=40):
    state = state_of(slots, pages)
    toy, texts, parcels = PagedToy(state), {job.id: [] for job in jobs}, []
    for step, ready in hand_off.read_prompts(jobs, Fcfs(), toy, state, ends):
        for drawn in step.written:
            texts[drawn.job].append(drawn.token)
        parcels += ready
    return texts, parcels


def ends_of(jobs, share=6) -> frozenset[int]:
    """Tokens that some of the texts come upon early."""
    return frozenset(text_of(job)[0] for job in jobs[::share])


@pytest.mark.parametrize("slots, pages", [(4, 40), (2, 40), (6, 9)])
@pytest.mark.parametrize("seed", range(4))
def test_texts_are_those_of_one_engine(seed, slots, pages):
    jobs = jobs_of(seed)
    ends = ends_of(jobs)
    first, parcels = read_all(jobs, ends)
    later = hand_off_toy.write_on(jobs, lambda toy: Post(parcels), state_of(slots, pages), ends)
    found = {job.id: first[job.id] + later.get(job.id, []) for job in jobs}
    assert found == {job.id: text_of(job, ends) for job in jobs}
    assert min(map(len, found.values())) == 0 < sum(map(len, later.values()))


def test_who_loses_its_pages_is_read_again(monkeypatch):
    """Four texts begin on a page each and grow to four, of nine."""
    sent_back, preempt = [], ServeState.preempt
    monkeypatch.setattr(
        ServeState, "preempt", lambda state, run: sent_back.append(run.job.id) or preempt(state, run)
    )
    jobs = [Job(id, (id, 1, 2), 13) for id in range(4)]
    first, parcels = read_all(jobs)
    later = hand_off_toy.write_on(jobs, lambda toy: Post(parcels), state_of(4, 9))
    assert sent_back and {id: first[id] + later[id] for id in first} == {job.id: text_of(job) for job in jobs}


def test_damaged_pages_change_the_text():
    """So the texts above tell whether pages were right."""
    jobs = [Job(0, tuple(range(1, 11)), 8)]
    _, parcels = read_all(jobs)
    wrong = {name: x.copy() for name, x in parcels[0].pages.items()}
    wrong["token"][1, 2] += 1
    parcels = [dataclasses.replace(parcels[0], pages=wrong)]
    later = hand_off_toy.write_on(jobs, lambda toy: Post(parcels), state_of(2, 40))
    assert later[0] != text_of(jobs[0])[1:]


def test_one_token_is_never_sent():
    jobs = [Job(0, (1, 2, 3), 1), Job(1, (4, 5), 2)]
    _, parcels = read_all(jobs)
    assert [parcel.job for parcel in parcels] == [1]


def test_another_prompt_under_the_same_id():
    _, parcels = read_all([Job(3, (1, 2, 3), 4)])
    for jobs in ([Job(3, (1, 2, 4), 4)], [Job(4, (1, 2, 3), 4)]):
        with pytest.raises(UsageError, match="give both engines the same requests"):
            hand_off_toy.write_on(jobs, lambda toy: Post(parcels), state_of(2, 40))


def test_two_processes():
    """This one reads, the other writes; between them a pipe."""
    jobs = jobs_of(seed=9)
    command = [sys.executable, "-m", "tests.serving.hand_off_toy", "9", "3", "40"]
    root = pathlib.Path(__file__).resolve().parents[2]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, **pipes) as other:
        state, first = state_of(3, 40), {}
        for step, parcels in hand_off.read_prompts(jobs, Fcfs(), PagedToy(state), state, frozenset()):
            first |= {drawn.job: [drawn.token] for drawn in step.written}
            for parcel in parcels:
                hand_off.send(other.stdin, parcel)
        later = json.loads(other.communicate(timeout=60)[0])
    assert other.returncode == 0
    found = {job.id: first[job.id] + later.get(str(job.id), []) for job in jobs}
    assert found == {job.id: text_of(job) for job in jobs}


def test_a_sender_that_goes_away():
    """Who waits for the rest is told; who does not wait has nothing yet."""
    receiver, sender = os.pipe()
    with open(receiver, "rb", buffering=0) as stream:
        inbox = Inbox(stream, LAYOUT, 2)
        assert inbox.take(wait=False) is None
        with open(sender, "wb") as other:
            hand_off.send(other, parcel_of())
        assert inbox.take(wait=True).job == 7
        assert inbox.take(wait=False) is None
        with pytest.raises(RetryError, match="went away before all were read"):
            inbox.take(wait=True)


def test_a_receiver_that_goes_away():
    receiver, sender = os.pipe()
    os.close(receiver)
    with open(sender, "wb", buffering=0) as stream, pytest.raises(RetryError, match="is gone"):
        hand_off.send(stream, parcel_of())
