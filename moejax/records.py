"""A config read: every setting listed by its path, and the whole as JSON and back.

A path names fields and tuple entries from the root of a tree of frozen dataclasses:
`model.groups[0].blocks[0].ffn.selector.k`. In JSON each record carries its class's stable name under
"type"; reading resolves such names only among the classes that the caller passes, and imports nothing.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from moejax import values
from moejax.errors import UsageError


class Leaf(NamedTuple):
    """A setting: a plain value, or the name of a strategy's class."""

    path: str
    value: Any
    is_default: bool


def flatten(cfg: Any) -> dict[str, Any]:
    """Every setting by its path; a strategy also appears under its own path, as the name of its class."""
    return {leaf.path: leaf.value for leaf in leaves(cfg)}


def leaves(cfg: Any, annotation: Any = None, path: str = "", is_default: bool = False):
    """Yield a `Leaf` per setting, in the order of the fields."""
    if dataclasses.is_dataclass(cfg):
        if annotation not in (None, type(cfg)):
            yield Leaf(path, type_name(type(cfg)), is_default)
        hints = annotations(type(cfg))
        for field in settings(cfg):
            value = getattr(cfg, field.name)
            yield from leaves(value, hints[field.name], join(path, field.name), equals_default(field, value))
    elif holds_records(cfg):
        for index, entry in enumerate(cfg):
            yield from leaves(entry, values.element(annotation, index), join(path, index), is_default)
    else:
        yield Leaf(path, cfg, is_default)


def to_dict(cfg: Any) -> dict[str, Any]:
    """A config as JSON's types; `from_dict` reads it back."""
    return _to_json(cfg, "")


def from_dict(data: Any, known: Iterable[type]) -> Any:
    """The config that `to_dict` wrote.

    Args:
      data: parsed JSON.
      known: every dataclass that may occur in it.

    Raises:
      UsageError: an unknown class or key, a wrong type, or values that cannot work together.
    """
    by_name = {}
    for cls in known:
        if by_name.setdefault(type_name(cls), cls) is not cls:
            name = type_name(cls)
            raise UsageError(f"two config classes are called {name!r}; give one of them another `name`")
    return _from_json(data, Any, by_name, "")


def fingerprint(cfg: Any) -> str:
    """SHA-256 of all settings; independent of where they came from."""
    canonical = json.dumps(to_dict(cfg), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_types(cfg: Any) -> None:
    """Raise UsageError unless every plain setting has its annotated type."""
    _from_json(to_dict(cfg), Any, {type_name(type(r)): type(r) for r in _records(cfg)}, "")


def join(path: str, key: str | int) -> str:
    """The path of an entry or a field of what lies at `path`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def locate(error: UsageError, path: str) -> None:
    """Put `path` in front of the message of the record there, which seldom knows where it is."""
    if path not in str(error):
        error.args = (f"config.{path}: {error}",)


def annotations(cls: type) -> dict[str, Any]:
    """The type of every setting; Any where a forward reference cannot be resolved."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError:
        hints = {}
    return {field.name: hints.get(field.name, Any) for field in settings(cls)}


def settings(record: Any) -> list[dataclasses.Field]:
    """The fields that a constructor takes; others follow from them."""
    return [field for field in dataclasses.fields(record) if field.init]


def type_name(cls: type) -> str:
    """The name under which a dataclass is stored: its class attribute `name`, else that of the class."""
    own = getattr(cls, "name", None)
    is_field = any(field.name == "name" for field in settings(cls))
    return own if isinstance(own, str) and not is_field else cls.__name__


def equals_default(field: dataclasses.Field, value: Any) -> bool:
    """Whether the field has a default and `value` is it."""
    if field.default is not dataclasses.MISSING:
        return same(field.default, value)
    return field.default_factory is not dataclasses.MISSING and same(field.default_factory(), value)


def holds_records(value: Any) -> bool:
    """Whether `value` is a tuple that must be entered to reach plain values."""
    return isinstance(value, tuple) and any(dataclasses.is_dataclass(v) or holds_records(v) for v in value)


def suggest(word: str, known) -> str:
    """`; did you mean X?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def same(a: Any, b: Any) -> bool:
    """Equal and of one type: 1, 1.0 and True are three settings."""
    return type(a) is type(b) and a == b


def _records(value: Any):
    if dataclasses.is_dataclass(value):
        yield value
        value = tuple(getattr(value, field.name) for field in settings(value))
    if isinstance(value, tuple):
        for entry in value:
            yield from _records(entry)


def _to_json(value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value):
        names = [field.name for field in settings(value)]
        fields = {name: _to_json(getattr(value, name), join(path, name)) for name in names}
        return {"type": type_name(type(value))} | fields
    if isinstance(value, tuple):
        return [_to_json(entry, join(path, index)) for index, entry in enumerate(value)]
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    if value is None or is_number or isinstance(value, str):
        return value
    raise UsageError(
        f"config.{path} is {value!r}; a setting is a frozen dataclass, a tuple, text, a finite number, "
        "true, false or none"
    )


def _from_json(data: Any, annotation: Any, known: Mapping[str, type], path: str) -> Any:
    if isinstance(data, dict):
        return _record_from_json(data, annotation, known, path)
    if isinstance(data, list):
        entries = enumerate(data)
        data = tuple(_from_json(v, values.element(annotation, i), known, join(path, i)) for i, v in entries)
    if not holds_records(data) and not values.fits(data, annotation):
        raise UsageError(f"config.{path} is {data!r}; expected {values.describe(annotation)}")
    return data


def _record_from_json(data: dict, annotation: Any, known: Mapping[str, type], path: str) -> Any:
    name, where = data.get("type"), f"config.{path}" if path else "the config"
    if name not in known:
        raise UsageError(
            f"{where} is of type {name!r}, which is not among the known ones{suggest(str(name), known)}: "
            f"{', '.join(sorted(known))}"
        )
    cls = known[name]
    if annotation is not Any and isinstance(annotation, type) and not issubclass(cls, annotation):
        raise UsageError(f"{where} is a {name}; expected {annotation.__name__}")
    hints = annotations(cls)
    for key in data:
        if key != "type" and key not in hints:
            raise UsageError(f"{where} ({name}) has no setting {key!r}{suggest(key, hints)}")
    fields = {k: _from_json(v, hints[k], known, join(path, k)) for k, v in data.items() if k != "type"}
    try:
        return cls(**fields)
    except UsageError as error:
        locate(error, path)
        raise
    except Exception as error:  # a strategy's own check may raise what it likes
        raise UsageError(f"{where} ({name}): {error}") from error
