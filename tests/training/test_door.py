"""What train.py refuses before it does anything, and how its processes find one another."""

import socket

import pytest

from moejax import flags
from moejax.errors import RetryError
from moejax.training import door


@pytest.mark.parametrize(
    "argv, told",
    [
        ([], "--workdir is missing"),
        (["--workdir={file}"], "is a file; name a directory"),
        (["--workdir={dir}/new", "--num_processes=2"], "--num_processes=2 needs --coordinator=HOST:PORT"),
        (["--workdir={dir}/new", "--num_processes=2", "--coordinator=host"], "it is host"),
        (["--workdir={dir}/new", "--process_id=1"], "--process_id=1 must be below --num_processes=1"),
    ],
)
def test_wrong_flags(argv, told, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert flags.main(door.PROGRAM, [text.format(file=file, dir=tmp_path) for text in argv]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def test_home_is_understood(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert flags.main(door.PROGRAM, ["--workdir=~/file"]) == 2
    assert f"--workdir={tmp_path}/file is a file" in capsys.readouterr().err


def test_the_first_process_is_awaited(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(door, "START_SECONDS", 0.0)
        with pytest.raises(RetryError, match=f"process 0 does not listen at --coordinator={address}"):
            door.await_first(address)
        server.listen()
        door.await_first(address)
