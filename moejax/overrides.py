"""Settings changed by path, and where each value came from.

`apply` takes paths as `moejax.records` writes them. Where the annotation of a field does not say what it
holds (a strategy), the value that is there does. Nothing here knows a setting by name or imports jax.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from moejax import values
from moejax.errors import UsageError
from moejax.records import (
    annotations,
    check_types,
    fingerprint,
    flatten,
    from_dict,
    holds_records,
    join,
    leaves,
    locate,
    same,
    settings,
    suggest,
    to_dict,
)

ABSENT = "(absent)"
COMMAND_LINE = "command line"
_PATH = re.compile(r"[A-Za-z_]\w*(\[\d+\])*(\.[A-Za-z_]\w*(\[\d+\])*)*")


class Change(NamedTuple):
    """One line of a diff; `ABSENT` stands where a side lacks the path."""

    path: str
    old: Any
    new: Any


def override(cfg: Any, path: str, text: str) -> Any:
    """`cfg` with the setting at `path` parsed from `text`; see `apply`."""
    return apply(cfg, {path: text})


def apply(cfg: Any, texts: Mapping[str, str]) -> Any:
    """`cfg` with all of `texts` applied; each record is rebuilt, and so validated, once.

    Args:
      cfg: a frozen dataclass.
      texts: value as typed by the user, per path.

    Raises:
      UsageError: a path does not exist, a text is not of its type, or the result cannot work.
    """
    edits = {}
    for path, text in texts.items():
        *parents, last = split(path)
        here = edits
        for key in parents:
            here = here.setdefault(key, {})
            if not isinstance(here, dict):
                raise UsageError(f"config.{path} and a part of its path are both set; set one of them")
        if isinstance(here.get(last), dict):
            raise UsageError(f"config.{path} and a setting inside it are both set; set one of them")
        here[last] = text
    return _rebuild(cfg, type(cfg), edits, "")


def diff(old: Any, new: Any) -> list[Change]:
    """The settings in which two configs differ, in the order of the older one."""
    before, after = flatten(old), flatten(new)
    both = [Change(path, before.get(path, ABSENT), after.get(path, ABSENT)) for path in before | after]
    return [change for change in both if not same(change.old, change.new)]


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A config and the source of every setting: "default", the recipe, or the command line."""

    config: Any
    sources: Mapping[str, str]


def resolve(config: Any, recipe: str, texts: Mapping[str, str]) -> Resolved:
    """`apply`, with a record of sources.

    Args:
      config: as the recipe made it.
      recipe: where it came from, for people to read.
      texts: overrides as typed by the user, per path.
    """
    check_types(config)
    sources = {leaf.path: "default" if leaf.is_default else recipe for leaf in leaves(config)}
    return reapply(Resolved(config, sources), texts)


def reapply(resolved: Resolved, texts: Mapping[str, str]) -> Resolved:
    """`resolved` with `texts` on top; the other settings keep their sources."""
    config = apply(resolved.config, texts)
    sources = {path: resolved.sources[path] for path in flatten(config)}
    for path in sources:
        if any(_covers(flag, path) for flag in texts):
            sources[path] = COMMAND_LINE
    return Resolved(config, sources)


def table(resolved: Resolved) -> str:
    """Every setting, its value and its source, in columns."""
    shown = {path: values.show(value) for path, value in flatten(resolved.config).items()}
    path_width, value_width = max(map(len, shown)), max(map(len, shown.values()))
    lines = (f"{p:<{path_width}}  {v:<{value_width}}  {resolved.sources[p]}" for p, v in shown.items())
    return "\n".join(lines)


def dumps(resolved: Resolved) -> str:
    """The text of a config.json: settings, sources and the fingerprint of the settings."""
    whole = {
        "sha256": fingerprint(resolved.config),
        "config": to_dict(resolved.config),
        "sources": dict(resolved.sources),
    }
    return json.dumps(whole, indent=1) + "\n"


def loads(text: str, known: Iterable[type]) -> Resolved:
    """Read what `dumps` wrote, so that it makes the same run again.

    Args:
      text: of a config.json.
      known: every dataclass that may occur in it; no other name is resolved and nothing is imported.

    Raises:
      UsageError: the text is no config.json, or names an unknown class or setting.
    """
    try:
        whole = json.loads(text)
        data, sources = whole["config"], dict(whole["sources"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"this is no config.json of a run: {type(error).__name__}: {error}") from error
    config = from_dict(data, known)
    return Resolved(config, {path: str(sources.get(path, "default")) for path in flatten(config)})


def split(path: str) -> list[str | int]:
    """`groups[0].repeat` -> ["groups", 0, "repeat"]."""
    if not _PATH.fullmatch(path):
        raise UsageError(f"config.{path} is not a path; write one like config.model.groups[0].repeat")
    return [int(key) if key.isdecimal() else key for key in re.findall(r"\w+", path)]


def _covers(flag: str, path: str) -> bool:
    """Whether the setting at `path` is the one that a flag set, or an entry of it."""
    return path == flag or flag.startswith(f"{path}[")


def _rebuild(node: Any, annotation: Any, edits: dict | str, path: str) -> Any:
    if isinstance(edits, str):
        return _parse(node, annotation, edits, path)
    if dataclasses.is_dataclass(node):
        return _rebuild_record(node, edits, path)
    if isinstance(node, tuple):
        return _rebuild_tuple(node, annotation, edits, path)
    below = join(path, next(iter(edits)))
    raise UsageError(f"config.{below} does not exist: config.{path} is a plain value, {values.show(node)!r}")


def _rebuild_record(node: Any, edits: dict, path: str) -> Any:
    hints = annotations(type(node))
    changes = {}
    for key, edit in edits.items():
        if key not in hints:
            raise UsageError(_unknown(node, key, hints, path))
        changes[key] = _rebuild(getattr(node, key), hints[key], edit, join(path, key))
    try:
        return dataclasses.replace(node, **changes)
    except UsageError as error:
        locate(error, path)
        raise
    except Exception as error:  # a strategy's own check may raise what it likes
        raise UsageError(f"{', '.join('config.' + join(path, key) for key in edits)}: {error}") from error


def _rebuild_tuple(node: tuple, annotation: Any, edits: dict, path: str) -> tuple:
    entries = list(node)
    for key, edit in edits.items():
        here = join(path, key)
        if not isinstance(key, int):
            raise UsageError(
                f"config.{here} does not exist: config.{path} is a tuple; write config.{path}[0]"
            )
        if key >= len(node):
            raise UsageError(
                f"config.{here} does not exist: config.{path} has {len(node)} entries, counted from 0; "
                "more of them need a recipe"
            )
        entries[key] = _rebuild(node[key], values.element(annotation, key), edit, here)
    return tuple(entries)


def _unknown(node: Any, key: str | int, known: Mapping, path: str) -> str:
    where, kind = f"config.{path}" if path else "config", type(node).__name__
    missing = f"config.{join(path, key)} does not exist"
    if isinstance(key, int):
        return f"{missing}: {where} is one {kind}, not a tuple"
    if not known:
        return f"{missing}: {where} is a {kind}, which has no settings"
    hint = suggest(key, known) or _elsewhere(node, key, path)
    return f"{missing}{hint}\nkeys of {where} ({kind}): {', '.join(known)}"


def _elsewhere(node: Any, key: str, path: str) -> str:
    """A hint at a setting of that name further down."""
    found = [leaf.path for leaf in leaves(node, None, path) if leaf.path.endswith(f".{key}")]
    return f"; did you mean config.{found[0]}?" if found else ""


def _parse(node: Any, annotation: Any, text: str, path: str) -> Any:
    if dataclasses.is_dataclass(node):
        names = ", ".join(field.name for field in settings(node)) or "none"
        raise UsageError(
            f"config.{path}={text!r}: this is a {type(node).__name__}, not a plain value; "
            f"set one of its keys ({names}), or choose another one in a recipe"
        )
    if holds_records(node):
        raise UsageError(
            f"config.{path}={text!r}: this is a tuple of {len(node)} records; "
            f"set their fields (config.{path}[0]...), or choose others in a recipe"
        )
    expected = values.type_of(node) if annotation is Any and node is not None else annotation
    try:
        return values.parse(text, annotation, node)
    except ValueError as error:
        raise UsageError(
            f"config.{path}={text!r} is not {values.describe(expected)}; "
            f"it is now {values.show(node)}; write for example --config.{path}={values.example(expected)}"
        ) from error
