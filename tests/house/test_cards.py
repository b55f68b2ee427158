"""Every technique and every program of a paper has its card: a docstring with the paper, and tests."""

import ast
import pathlib
import re

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


def programs() -> list[str]:
    paths = [path for path in tree.product() if path.startswith("moejax/bench/papers/")]
    return [path for path in paths if not path.endswith("__init__.py")]


@pytest.mark.parametrize("path", programs())
def test_a_program_has_its_card(path):
    """Its paper's worked numbers are in a test of its own, or in tests that its docstring names."""
    words = ast.get_docstring(tree.parsed(path))
    assert re.search(r"arXiv\s+\d{4}\.\d{5}", words), "names no paper"
    assert "Differs from the paper" in words, "says not what differs from the paper"
    own = f"tests/bench/papers/test_{pathlib.PurePath(path).name}"
    named = set(re.findall(r"tests/[\w/]+\.py", words))
    assert named <= set(tree.sources()), f"there is no {', '.join(sorted(named - set(tree.sources())))}"
    assert named or own in tree.sources(), f"there is no {own}, and the docstring names no test"
