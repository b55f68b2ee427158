"""Answers survive whatever happens to the process, the file, or the disk."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moejax.errors import DataError, RetryError, StorageError, UsageError
from moejax.serving.journal import Journal

JOB = {"created": 1, "input": {"sha256": "ab"}, "settings": {"seed": 0}}
ANSWERS = [(4, 200, '{"id": "d"}'), (2, 400, '{"id": "b c"}'), (9, 200, "{}")]
IN_ORDER = [b'{"id": "b c"}\n', b'{"id": "d"}\n', b"{}\n"]


def write(path, answers, job=JOB, resume=True):
    """Go on with a journal; returns it, closed."""
    journal = Journal(path, resume)
    try:
        journal.begin(job)
        for number, *rest in answers:
            if number not in journal.statuses:
                journal.add(number, *rest)
    finally:
        journal.close()
    return journal


def test_answers_come_back_in_the_order_of_the_requests(tmp_path):
    journal = write(tmp_path / "j", ANSWERS)
    assert list(journal.answers()) == IN_ORDER
    again = Journal(tmp_path / "j", resume=True)
    again.close()
    assert again.statuses == {4: 200, 2: 400, 9: 200}
    assert (again.job, list(again.answers())) == (JOB, IN_ORDER)


def test_a_journal_cut_anywhere_goes_on(tmp_path):
    whole = tmp_path / "whole"
    write(whole, ANSWERS)
    data = whole.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data)):
        path = tmp_path / "cut"
        path.write_bytes(data[:size])
        found = Journal(path, resume=True)
        found.close()
        assert len(found.statuses) == max(sum(end <= size for end in ends) - 1, 0)
        assert path.stat().st_size == max([end for end in ends if end <= size], default=0)
        assert list(write(path, ANSWERS).answers()) == IN_ORDER
        assert path.read_bytes() == data


@given(st.data())
def test_damage_costs_answers_and_never_changes_one(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / "j"
    write(path, ANSWERS)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert list(write(path, ANSWERS).answers()) == IN_ORDER


def test_answers_are_not_thrown_away_unasked(tmp_path):
    path = tmp_path / "j"
    write(path, [], resume=False)
    write(path, ANSWERS[:2], resume=False)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="has 2 answers of a job that was stopped; --resume goes on"):
        Journal(path, resume=False)
    assert path.read_bytes() == before


def test_another_job_is_refused(tmp_path):
    path = tmp_path / "j"
    write(path, ANSWERS[:2])
    before = path.read_bytes()
    other = {"created": 2, "input": {"sha256": "cd"}, "settings": {"seed": 0, "top_k": 3}}
    with pytest.raises(DataError) as caught:
        write(path, ANSWERS, other)
    assert "input.sha256 was 'ab', is now 'cd'; settings.top_k was None, is now 3" in str(caught.value)
    assert "created" not in str(caught.value)
    assert path.read_bytes() == before
    assert write(path, ANSWERS, {**JOB, "created": 2}).job["created"] == 1


def test_a_journal_without_answers_is_nobodys(tmp_path):
    write(tmp_path / "j", [])
    assert write(tmp_path / "j", ANSWERS, {"created": 7}).job == {"created": 7}


def test_one_process_at_a_time(tmp_path):
    journal = Journal(tmp_path / "j", resume=True)
    with pytest.raises(RetryError, match="is being written by another process"):
        Journal(tmp_path / "j", resume=True)
    journal.close()
    Journal(tmp_path / "j", resume=True).close()


class FullDisk:
    """A file that takes three more bytes."""

    def __init__(self, file):
        self._file, self._left = file, 3

    def write(self, data):
        if not self._left:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._file.write(data[: self._left])
        self._left = 0
        return written

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_a_full_disk_tears_no_answer(tmp_path):
    path = tmp_path / "j"
    journal = Journal(path, resume=False)
    journal.begin(JOB)
    journal.add(*ANSWERS[0])
    whole, file = path.read_bytes(), journal._file
    journal._file = FullDisk(file)
    with pytest.raises(
        StorageError, match=r"No space left on device; it keeps the 1 answers so far\. Make room"
    ):
        journal.add(*ANSWERS[1])
    assert path.read_bytes() == whole
    file.close()
    assert list(write(path, ANSWERS).answers()) == IN_ORDER


def test_answers_are_synced_now_and_then(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("moejax.serving.journal.os.fsync", synced.append)
    write(tmp_path / "a", ANSWERS)
    assert len(synced) == 0
    monkeypatch.setattr("moejax.serving.journal.SYNC_SECONDS", 0.0)
    write(tmp_path / "b", ANSWERS)
    assert len(synced) == len(ANSWERS)

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("moejax.serving.journal.os.fsync", broken)
    with pytest.raises(StorageError, match="Input/output error"):
        write(tmp_path / "c", ANSWERS)
