"""The source tree as data: files, modules and who imports whom. Reads text, imports nothing."""

import ast
import functools
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDERS = ("moejax", "configs", "pallas_kernels", "tests")


@functools.cache
def sources() -> tuple[str, ...]:
    """Every Python file of the project, relative to its root."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")] + list(ROOT.glob("*.py"))
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in found))


def product() -> list[str]:
    """The Python files that are not tests."""
    return [path for path in sources() if not path.startswith("tests/")]


@functools.cache
def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


@functools.cache
def imports(path: str) -> frozenset[str]:
    """What a file imports anywhere in it: paths of project files, and top-level names of other packages."""
    return frozenset(_resolve(module) for module in _imported(parsed(path)))


def reachable(path: str) -> dict[str, str]:
    """All that importing a file imports, each with the file that does: project files and other packages."""
    found, todo = {}, [path]
    while todo:
        here = todo.pop()
        for name in imports(here) - found.keys():
            found[name] = here
            if name.endswith(".py"):
                todo.append(name)
    return found


def module(path: str) -> str:
    """`moejax/ops/norm.py` -> `moejax.ops.norm`; a package's own file is the package."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _resolve(name: str) -> str:
    """The project file that defines a dotted name, or the top-level package of a foreign one."""
    first = name.split(".")[0]
    if first not in FOLDERS:
        return first
    stem = name.replace(".", "/")
    while stem:
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if (ROOT / path).is_file():
                return path
        stem = stem.rpartition("/")[0]
    return first
