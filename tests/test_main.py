"""`python -m moejax`: commands, and arguments without their names."""

import pytest

import moejax
from moejax import __main__ as door


def test_usage(capsys):
    assert door.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: python -m moejax COMMAND")
    assert door.main(["--help"]) == 0
    assert "verify MODEL" in capsys.readouterr().out
    assert door.main(["inspekt", "x"]) == 2
    assert door.main(["--version"]) == 0
    assert f"moejax {moejax.__version__}\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", door.COMMANDS)
def test_every_command_has_help(command, capsys):
    assert door.main([command, "--help"]) == 0
    assert f"python -m moejax {command}" in capsys.readouterr().out


def test_arguments_get_their_names():
    found = door.named(["a", "--x=1", "b", "c"], ("source", "target"))
    assert found == ["--source=a", "--x=1", "--target=b", "c"]
