"""Imports go one way, and what must start fast or run anywhere does not drag jax in."""

import ast

import pytest

from tests.house import layers, tree

WITHOUT_JAX = ("moejax/flags.py", "moejax/overrides.py", "moejax/config.py")
# Where jax 0.10 cannot check: a shard_map around functions that have one themselves.
UNCHECKED = ("moejax/bench/replicate.py",)
FOLDERS_WITHOUT_JAX = ("moejax/training/data/", "moejax/serving/schedulers/", "moejax/placement/")


def forbidden() -> dict[tuple[str, str], str]:
    """Every import against the table, with the reason."""
    found = {}
    for path in tree.product():
        own = layers.layer(tree.module(path))
        for target in tree.imports(path):
            if not target.endswith(".py") or target == path:
                continue
            other = layers.layer(tree.module(target))
            if other == own and own in layers.APART and not target.endswith("__init__.py"):
                found[path, target] = f"a {own} imports another; move what they share down a level"
            elif other != own and other not in layers.MAY_IMPORT[own]:
                found[path, target] = f"{own} may import only {', '.join(sorted(layers.MAY_IMPORT[own]))}"
    return found


def test_imports_follow_the_table():
    found = forbidden().items()
    assert not found, "\n".join(f"{path} imports {target}: {why}" for (path, target), why in found)


def test_the_table_has_no_cycle():
    done = set()
    while len(done) < len(layers.MAY_IMPORT):
        ready = {name for name, below in layers.MAY_IMPORT.items() if below <= done} - done
        assert ready, f"a cycle among {layers.MAY_IMPORT.keys() - done}"
        done |= ready


@pytest.mark.parametrize(
    "path", [p for p in tree.product() if p in WITHOUT_JAX or p.startswith(FOLDERS_WITHOUT_JAX)]
)
def test_does_not_reach_jax(path):
    reached = tree.reachable(path)
    assert "jax" not in reached, f"{path} reaches jax through {reached['jax']}"


def test_every_shard_map_checks_what_varies():
    found = []
    for path in tree.product():
        calls = [node for node in ast.walk(tree.parsed(path)) if isinstance(node, ast.Call)]
        maps = [call for call in calls if getattr(call.func, "attr", None) == "shard_map"]
        found += maps
        for call in maps:
            checks = [word.value.value for word in call.keywords if word.arg == "check_vma"]
            wanted = [path not in UNCHECKED]
            assert checks == wanted, f"{path}:{call.lineno} calls shard_map without check_vma={wanted[0]}"
    assert len(found) >= 2


def test_kernels_know_nothing_of_the_model():
    for path in tree.product():
        if path.startswith("pallas_kernels/"):
            strangers = {name for name in tree.imports(path) if name.startswith(("moejax", "configs"))}
            assert not strangers, f"{path} imports {strangers}"
