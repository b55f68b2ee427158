"""The recipes that come with moejax, and the names under which strategies are stored."""

import importlib
import pathlib

import pytest

from moejax import config, overrides, recipes, records

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("[!_]*.py") if path.stem != "base")
FUNCTIONS = [
    f"{name}.py:{function}"
    for name in NAMES
    for function, value in vars(importlib.import_module(f"configs.{name}")).items()
    if getattr(value, "__annotations__", None) == {"return": config.Run}
]


def test_stored_names_are_unique():
    names = [records.type_name(cls) for cls in recipes.strategies()]
    assert sorted(names) == sorted(set(names))
    assert {"Run", "ModelConfig", "Moe", "TopK", "NextToken"} <= set(names)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_recipe_survives_json(function):
    resolved = recipes.resolve(str(CONFIGS / function), {})
    assert isinstance(resolved.config, config.Run)
    assert overrides.loads(overrides.dumps(resolved), recipes.strategies()) == resolved


@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_a_recipe(name):
    assert f"{name}.py:config" in FUNCTIONS


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_how_to_run_it(name):
    assert f"--config=configs/{name}.py" in importlib.import_module(f"configs.{name}").__doc__
