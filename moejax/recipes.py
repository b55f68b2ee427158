"""Finding a run's settings: a recipe (trusted Python), or the config.json of an earlier run.

    configs/tiny.py          its function `config`
    configs/tiny.py:wide     its function `wide`
    runs/tiny/config.json    the settings of that run

A recipe that does not lie under the working directory is looked for in the installed `configs` package.
"""

import contextlib
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
import sys
import types
from collections.abc import Iterator, Mapping

from moejax import config, overrides
from moejax.errors import MoejaxError, UsageError
from moejax.records import suggest

# Where strategies live. A config.json names classes of these packages and of moejax.config, nothing else.
STRATEGY_PACKAGES = ("attention", "depth", "dispatch", "ffn", "losses", "ops", "routers", "training.rules")


def resolve(source: str, texts: Mapping[str, str]) -> overrides.Resolved:
    """The settings that `--config=source` and `--config.PATH=TEXT` stand for.

    Raises:
      UsageError: no such recipe, function, setting or value, or values that cannot work together.
    """
    if source.endswith(".json"):
        return overrides.reapply(_replay(pathlib.Path(source)), texts)
    file, _, function = source.partition(".py:")
    file = file if file.endswith(".py") else f"{file}.py"
    run = _call(_load(_find(pathlib.Path(file))), function or "config", file)
    return overrides.resolve(run, source, texts)


def strategies() -> list[type]:
    """Every record and strategy of the package; imports the fixed packages that hold them."""
    modules = [config]
    for package in STRATEGY_PACKAGES:
        modules += _modules(f"moejax.{package}")
    return list(dict.fromkeys(cls for module in modules for cls in _records(module)))


def _modules(name: str) -> Iterator[types.ModuleType]:
    if importlib.util.find_spec(name) is None:
        return
    package = importlib.import_module(name)
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{name}."):
        yield importlib.import_module(found.name)


def _records(module: types.ModuleType) -> Iterator[type]:
    for value in vars(module).values():
        params = getattr(value, "__dataclass_params__", None)
        if isinstance(value, type) and value.__module__ == module.__name__ and params and params.frozen:
            yield value


def _replay(path: pathlib.Path) -> overrides.Resolved:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config={path} cannot be read: {error}") from error
    resolved = overrides.loads(text, strategies())
    _check_run(resolved.config, str(path))
    return resolved


def _find(path: pathlib.Path) -> pathlib.Path:
    """`path`, or the file of that name among the installed recipes."""
    if path.is_file():
        return path
    spec = importlib.util.find_spec("configs")
    folders = [pathlib.Path(folder) for folder in spec.submodule_search_locations] if spec else []
    for folder in folders:
        if path.parent.name in ("", "configs") and (folder / path.name).is_file():
            return folder / path.name
    known = sorted(f"configs/{file.name}" for folder in folders for file in folder.glob("[!_]*.py"))
    hint = suggest(f"configs/{path.name}", known)
    raise UsageError(f"recipe {path} does not exist{hint}\nrecipes: {', '.join(known) or 'none'}")


def _load(path: pathlib.Path) -> types.ModuleType:
    name = f"moejax_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the module of their annotations
    with _blaming(str(path)):
        spec.loader.exec_module(module)
    return module


def _call(module: types.ModuleType, function: str, file: str) -> config.Run:
    known = [name for name, value in vars(module).items() if _is_recipe(module, name, value)]
    if function not in known:
        hint, listed = suggest(function, known), ", ".join(known) or "none"
        raise UsageError(f"{file} has no recipe {function!r}{hint}\nrecipes in it: {listed}")
    with _blaming(f"{file}:{function}"):
        run = getattr(module, function)()
    _check_run(run, f"{file}:{function}")
    return run


def _is_recipe(module: types.ModuleType, name: str, value: object) -> bool:
    """Whether `value` is a public function of the module that can be called without arguments."""
    if name.startswith("_") or not inspect.isfunction(value) or value.__module__ != module.__name__:
        return False
    parameters = inspect.signature(value).parameters.values()
    return all(p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)


def _check_run(run: object, source: str) -> None:
    if not isinstance(run, config.Run):
        raise UsageError(f"{source} gives a {type(run).__name__}; expected a moejax.config.Run")


@contextlib.contextmanager
def _blaming(recipe: str):
    """Turn whatever a recipe raises into one message that names the recipe."""
    try:
        yield
    except UsageError as error:
        error.args = (f"recipe {recipe}: {error}",)
        raise
    except MoejaxError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise UsageError(f"recipe {recipe} failed: {kind}: {error} (--debug shows where)") from error
