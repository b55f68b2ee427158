"""Answers in order: on standard output as soon as they can be, in a file that gets its name at the end."""

import errno

import pytest

from moejax.errors import StorageError, UsageError
from moejax.serving.output import OutputFile, StandardOutput, check_place, open_output


def answer(output, numbers):
    output.begin({})
    for number in numbers:
        output.add(number, 200, f"answer {number}")


def test_standard_output_keeps_the_order(capsys):
    printed = []
    with StandardOutput() as output:
        for number in (1, 2, 5):
            output.expect(number)
        for number in (2, 5, 1):
            output.add(number, 200, f"answer {number}")
            printed.append(capsys.readouterr().out)
    assert printed == ["", "", "answer 1\nanswer 2\nanswer 5\n"]


def test_the_file_gets_its_name_at_the_end(tmp_path):
    path, part = tmp_path / "out", tmp_path / "out.part"
    path.write_text("old")
    with OutputFile(str(path)) as output:
        answer(output, [3, 1])
        assert (path.read_text(), part.read_text().count("answer")) == ("old", 2)
    assert path.read_text() == "answer 1\nanswer 3\n"
    assert [own.name for own in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_the_old_file_and_what_is_answered(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(KeyError), OutputFile(str(path)) as output:
        answer(output, [1])
        raise KeyError
    assert path.read_text() == "old"
    with OutputFile(str(path), resume=True) as output:
        assert output.statuses == {1: 200}
        answer(output, [2])
    assert path.read_text() == "answer 1\nanswer 2\n"


def test_an_error_before_the_first_answer_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), OutputFile(str(tmp_path / "out")) as output:
        output.begin({})
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_job_says_how_to_go_on(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt), OutputFile(str(tmp_path / "out")) as output:
        answer(output, [1])
        raise KeyboardInterrupt
    assert "out.part keeps 1 answers; --resume goes on" in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_end_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "out"

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("moejax.serving.output.durable.sync", full)
        with pytest.raises(StorageError, match=r"all answers are in .*out\.part"):  # noqa: SIM117
            with OutputFile(str(path)) as output:
                answer(output, [2, 1])
    assert [own.name for own in tmp_path.iterdir()] == ["out.part"]
    with OutputFile(str(path), resume=True) as output:
        output.begin({})
    assert path.read_text() == "answer 1\nanswer 2\n"


def test_nothing_is_left_to_resume_where_the_file_is_whole(tmp_path):
    path = tmp_path / "out"
    assert not OutputFile(str(path), resume=True).is_whole
    path.write_text("old")
    assert OutputFile(str(path), resume=True).is_whole
    assert not OutputFile(str(path)).is_whole
    (tmp_path / "out.part").touch()
    assert not OutputFile(str(path), resume=True).is_whole


def test_a_place_where_no_file_can_be_is_refused_at_once(tmp_path):
    with pytest.raises(UsageError, match=r"--summary=.*: there is no directory"):
        check_place("summary", str(tmp_path / "no" / "out"))
    with pytest.raises(UsageError, match=r"--output=.* is a directory"):
        OutputFile(str(tmp_path))
    with pytest.raises(UsageError, match="--resume goes on with a file"):
        open_output("-", resume=True)
