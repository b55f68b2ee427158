"""The project speaks of itself alone, in ASCII, and promises nothing without a condition."""

import re

import pytest

from tests.house import tree

TEXT = (".py", ".toml", ".md", ".txt", ".json", ".bazel", ".cfg", ".yaml", ".yml")
NAMES = ("BUILD", "LICENSE", ".gitignore", "run")
# Split, so that this file does not contain them.
FORBIDDEN = {
    "an absolute path of one machine": re.compile("(?<![\\w.])/(work|" + "root|home|Users)/|/" + "tmp/[a-z]"),
    "a mark without a condition; write what it waits for ('when jax ...')": re.compile(
        "FIX" + "ME|XX" + "X\\b|TO" + "DO(?!.*\\b(when|once|until|if)\\b)"
    ),
    "a line that is not ASCII": re.compile(r"[^\x00-\x7f]"),
}


def texts():
    """Every text file of the project, relative to its root."""
    folders = [tree.ROOT / name for name in (*tree.FOLDERS, "docs", ".ci")]
    found = [path for folder in folders for path in folder.rglob("*")] + list(tree.ROOT.iterdir())
    for path in sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts):
        if path.suffix in TEXT or path.name in NAMES:
            yield path.relative_to(tree.ROOT).as_posix()


@pytest.mark.parametrize("what", FORBIDDEN)
def test_words(what):
    found = []
    for path in texts():
        lines = (tree.ROOT / path).read_text(encoding="utf-8").splitlines()
        found += [
            f"{path}:{n}: {line.strip()}" for n, line in enumerate(lines, 1) if FORBIDDEN[what].search(line)
        ]
    assert not found, f"{what}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "line, what",
    [
        ("see /ro" + "ot/x", "an absolute path of one machine"),
        ("open('/t" + "mp/x')", "an absolute path of one machine"),
        ("# TO" + "DO tidy", "a mark without a condition; write what it waits for ('when jax ...')"),
        ("caf\xe9", "a line that is not ASCII"),
    ],
)
def test_the_patterns_find(line, what):
    assert FORBIDDEN[what].search(line)


def test_the_patterns_spare():
    fine = [
        "# TO" + "DO use ragged_dot when it runs on CPU",
        "https://host/homework/",
        "a.work/b",
        "docs/root/",
    ]
    assert not [line for line in fine for pattern in FORBIDDEN.values() if pattern.search(line)]
