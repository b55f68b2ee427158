"""Answers on disk: whole lines, and the name only at the end."""

import errno

import pytest

from moejax.errors import StorageError, UsageError
from moejax.serving.output import OutputFile


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


def test_the_file_gets_its_name_at_the_end(tmp_path):
    path, part = tmp_path / "out", tmp_path / "out.part"
    path.write_text("old")
    with OutputFile(str(path)) as output:
        output.write(["one", "two"])
        output.write([])
        assert (path.read_text(), part.read_text()) == ("old", "one\ntwo\n")
    assert path.read_text() == "one\ntwo\n"
    assert not part.exists()


def test_an_error_leaves_the_old_file_and_the_part(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(KeyError), OutputFile(str(path)) as output:
        output.write(["one"])
        raise KeyError
    assert (path.read_text(), (tmp_path / "out.part").read_text()) == ("old", "one\n")


def test_a_full_disk_tears_no_line(tmp_path):
    with pytest.raises(StorageError, match="No space left on device; the answers so far are in it"):  # noqa: SIM117
        with OutputFile(str(tmp_path / "out")) as output:
            output.write(["one", "two"])
            output._file = FullDisk(output._file)
            output.write(["three", "four"])
    assert (tmp_path / "out.part").read_text() == "one\ntwo\n"
    assert not (tmp_path / "out").exists()


def test_a_place_where_no_file_can_be_is_refused_at_once(tmp_path):
    with pytest.raises(UsageError, match="there is no directory"):
        OutputFile(str(tmp_path / "no" / "out"))
    with pytest.raises(UsageError, match="is a directory"):
        OutputFile(str(tmp_path))
