"""Every technique has its card: a docstring with the paper, a test of its own, and rows in the contracts."""

import ast
import pathlib

import pytest

from tests.house import layers, tree

FOLDERS = ("attention", "dispatch", "ffn", "losses", "routers", "surgery")
ROWS = (tree.ROOT / "tests/contracts/cases.py").read_text(encoding="utf-8")


def strategies(path: str) -> list[str]:
    """Frozen dataclasses of a file that subclass something: a protocol, or what its losses share."""
    nodes = (node for node in tree.parsed(path).body if isinstance(node, ast.ClassDef))
    return [node.name for node in nodes if node.bases and node.decorator_list]


def techniques() -> list[str]:
    paths = [path for path in tree.product() if path.startswith("moejax/") and path.split("/")[1] in FOLDERS]
    return [path for path in paths if layers.layer(tree.module(path)) == "technique" and strategies(path)]


@pytest.mark.parametrize("path", techniques())
def test_a_technique_has_its_card(path):
    words = ast.get_docstring(tree.parsed(path))
    assert "arXiv" not in words or "Differs from the paper" in words, "says not what differs from the paper"
    folder, file = pathlib.PurePath(path).relative_to("moejax").parent, pathlib.PurePath(path).name
    test = pathlib.PurePath("tests", folder, f"test_{file}").as_posix()
    assert test in tree.sources(), f"there is no {test}"
    missing = [name for name in strategies(path) if f"{name}(" not in ROWS]
    assert not missing, f"tests/contracts/cases.py has no row for {', '.join(missing)}"


def test_there_are_techniques():
    assert len(techniques()) >= 25
