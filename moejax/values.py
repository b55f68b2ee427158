"""Plain values by annotation: from command-line text, back to text, and checked as they are.

Known annotations: bool, int, float, str, None, Literal, unions of these, and tuples of them.
`Any` takes the type that the value has now.
"""

import math
import types
import typing
from typing import Any

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}
EXAMPLES = {bool: "true", int: "8", float: "3e-4", str: "text", type(None): "none"}
BOOLS = {"true": True, "1": True, "false": False, "0": False}


def describe(annotation: Any) -> str:
    """The annotation in the words of a command line."""
    if annotation is Any:
        return "a value"
    if is_union(annotation):
        return " or ".join(describe(member) for member in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) is tuple:
        members = typing.get_args(annotation)
        if members[-1] is Ellipsis:
            return f"a comma-separated list, each {describe(members[0])}"
        return f"{len(members)} comma-separated values"
    return WORDS.get(annotation) or getattr(annotation, "__name__", str(annotation))


def example(annotation: Any) -> str:
    """A text that `parse` accepts for this annotation."""
    if is_union(annotation):
        return example(next(a for a in typing.get_args(annotation) if a is not type(None)))
    if typing.get_origin(annotation) is typing.Literal:
        return str(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is tuple:
        members = typing.get_args(annotation)
        repeated = (members[0], members[0]) if members[-1] is Ellipsis else members
        return ",".join(example(member) for member in repeated)
    return EXAMPLES.get(annotation, "text")


def parse(text: str, annotation: Any, current: Any = None) -> Any:
    """The value that `text` stands for.

    Args:
      text: from the command line.
      annotation: of the field.
      current: the field's value now; decides the type where the annotation is Any.

    Raises:
      ValueError: the text is no such value.
    """
    if annotation is Any:
        annotation = str if current is None else type_of(current)
    if is_union(annotation):
        return _parse_union(text, typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return _parse_tuple(text, typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        named = {str(option): option for option in typing.get_args(annotation)}
        return _lookup(named, text)
    if annotation is bool:
        return _lookup(BOOLS, text.lower())
    if annotation is type(None):
        return _lookup({"none": None}, text.lower())
    if annotation in (int, float):
        value = annotation(text)
        if not math.isfinite(value):
            raise ValueError("not a finite number")
        return value
    if annotation is str:
        return text
    raise ValueError("no such value can be written on a command line; set it in a recipe")


def show(value: Any) -> str:
    """The text from which `parse` makes `value` again."""
    if isinstance(value, tuple):
        return ",".join(show(member) for member in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value has the annotated type; an int fits float, a bool fits neither."""
    if annotation is Any:
        return True
    if is_union(annotation):
        return any(fits(value, member) for member in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return value in typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple:
        members = typing.get_args(annotation)
        if isinstance(value, tuple) and members[-1] is Ellipsis:
            members = (members[0],) * len(value)
        return isinstance(value, tuple) and len(value) == len(members) and all(map(fits, value, members))
    if annotation in (int, float):
        return isinstance(value, (int, annotation)) and not isinstance(value, bool)
    return not isinstance(annotation, type) or isinstance(value, annotation)


def element(annotation: Any, index: int) -> Any:
    """The annotation of one entry of a tuple; Any past its end."""
    members = typing.get_args(annotation) if typing.get_origin(annotation) is tuple else (Any, ...)
    if members[-1] is Ellipsis:
        return members[0]
    return members[index] if index < len(members) else Any


def type_of(value: Any) -> Any:
    """The annotation that a value without one would have."""
    if isinstance(value, tuple):
        return tuple[type_of(value[0]) if value else str, ...]
    return type(value)


def is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _parse_union(text: str, members: tuple) -> Any:
    """By the strictest member that accepts the text: "none" before numbers before str."""
    for member in sorted(members, key=lambda member: (member is str, member is not type(None))):
        try:
            return parse(text, member)
        except ValueError:
            continue
    raise ValueError(text)


def _parse_tuple(text: str, members: tuple) -> tuple:
    parts = text.split(",") if text else []
    if members[-1] is Ellipsis:
        members = (members[0],) * len(parts)
    if len(parts) != len(members):
        raise ValueError(f"{len(parts)} values")
    return tuple(map(parse, parts, members))


def _lookup(table: dict, text: str) -> Any:
    if text not in table:
        raise ValueError(text)
    return table[text]
