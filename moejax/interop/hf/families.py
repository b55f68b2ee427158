"""Which families there are: every file of this folder that has a FAMILY."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from moejax.errors import UsageError
from moejax.interop.hf.family import Family
from moejax.records import suggest


@functools.cache
def families() -> dict[str, Family]:
    """By model_type, every family that can be read and written."""
    folder = importlib.import_module(__package__).__path__
    names = [f"{__package__}.{found.name}" for found in pkgutil.iter_modules(folder)]
    modules = [importlib.import_module(name) for name in names]
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.model_type: family for family in sorted(found, key=lambda family: family.model_type)}


def named(model_type: object, where: str) -> Family:
    """The family of a config.json.

    Raises:
      UsageError: nobody knows it.
    """
    if not isinstance(model_type, str) or model_type not in families():
        hint = suggest(str(model_type), families())
        known = ", ".join(families())
        raise UsageError(f"{where}: the family {model_type!r} is not known here{hint}\nfamilies: {known}")
    return families()[model_type]


def of_config(config: Mapping[str, Any], where: str) -> Family:
    """The family of a config.json: by its architecture, as some give another family's model_type.

    Raises:
      UsageError: nobody knows it.
    """
    for family in families().values():
        if config.get("architectures") == [family.architecture]:
            return family
    return named(config.get("model_type"), where)


def of_model(m) -> Family:
    """The family that the model `m` belongs to; of several, the one that needs the fewest words for it.

    Raises:
      UsageError: it belongs to none; says why, for each.
    """
    fields, reasons = {}, []
    for family in families().values():
        try:
            fields[family.model_type] = len(family.config(m))
        except UsageError as error:
            reasons.append(f"{family.model_type}: {error}")
    if not fields:
        raise UsageError("this model is of no family that the hub knows\n" + "\n".join(reasons))
    return families()[min(fields, key=fields.get)]
