"""BUILD and pyproject.toml say what the source tree says."""

import ast
import tomllib

from tests.house import build_deps, tree

# Used directly, though another package brings it: Orbax takes the paths of etils.
COMES_WITH_ANOTHER = {"etils"}
REGENERATE = "run `python tests/house/build_deps.py --write` and commit BUILD"


def rules() -> list[dict]:
    """The arguments of every py_ rule of BUILD, whose syntax is Python's."""
    calls = [
        node for node in ast.walk(ast.parse((tree.ROOT / "BUILD").read_text())) if isinstance(node, ast.Call)
    ]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id.startswith("py_")]
    return [{k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg != "data"} for call in named]


def test_every_source_is_in_exactly_one_target():
    listed = sorted(path for rule in rules() for path in rule["srcs"])
    assert listed == sorted(tree.sources()), REGENERATE


def test_deps_are_the_imports():
    found = build_deps.targets()
    for rule in rules():
        if rule["name"] in found:
            assert rule.get("deps", []) == build_deps.dependencies(rule["name"], found), (
                f"{rule['name']}: {REGENERATE}"
            )


def test_build_is_current():
    assert (tree.ROOT / "BUILD").read_text() == build_deps.build_file(), REGENERATE


def test_targets_have_no_cycle():
    left = {f":{rule['name']}": {d for d in rule.get("deps", []) if d.startswith(":")} for rule in rules()}
    while left:
        ready = {name for name, deps in left.items() if not deps & left.keys()}
        assert ready, f"a cycle among {sorted(left)}"
        left = {name: deps for name, deps in left.items() if name not in ready}


def test_every_foreign_import_is_a_declared_dependency():
    labels = {dep for rule in rules() for dep in rule.get("deps", []) if dep.startswith("@pypi//")}
    undeclared = {label.removeprefix("@pypi//") for label in labels} - build_deps.distributions()
    undeclared -= COMES_WITH_ANOTHER
    assert not undeclared, f"add to pyproject.toml: {sorted(undeclared)}"


def test_every_foreign_import_is_locked():
    lock = (tree.ROOT / ".ci" / "requirements_lock.txt").read_text().splitlines()
    locked = {line.partition("==")[0].lower().replace("-", "_") for line in lock if "==" in line}
    labels = {dep for rule in rules() for dep in rule.get("deps", []) if dep.startswith("@pypi//")}
    unlocked = {"lm_eval", "torch", "transformers"}
    missing = {label.removeprefix("@pypi//") for label in labels} - locked - unlocked
    assert not missing, f"add to .ci/requirements_lock.txt: {sorted(missing)}"


def test_console_scripts_point_at_something():
    project = tomllib.loads((tree.ROOT / "pyproject.toml").read_text())["project"]
    for script, target in project["scripts"].items():
        module, _, name = target.partition(":")
        body = tree.parsed(f"{module.replace('.', '/')}.py").body
        names = {
            t.id
            for node in body
            if isinstance(node, ast.Assign)
            for t in node.targets
            if isinstance(t, ast.Name)
        }
        names |= {node.name for node in body if isinstance(node, ast.FunctionDef)}
        assert name in names, f"{script} = {target}"
