"""Which families there are: every file of this folder that has a FAMILY."""

import functools
import importlib
import pkgutil

from moejax.errors import UsageError
from moejax.interop import hf
from moejax.interop.hf.family import Family
from moejax.records import suggest


@functools.cache
def families() -> dict[str, Family]:
    """By model_type, every family that can be read and written."""
    names = [f"{hf.__name__}.{found.name}" for found in pkgutil.iter_modules(hf.__path__)]
    modules = [importlib.import_module(name) for name in names]
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.model_type: family for family in sorted(found, key=lambda family: family.model_type)}


def named(model_type: object, where: str) -> Family:
    """The family of a config.json.

    Raises:
      UsageError: nobody knows it.
    """
    if model_type not in families():
        hint = suggest(str(model_type), families())
        known = ", ".join(families())
        raise UsageError(f"{where}: the family {model_type!r} is not known here{hint}\nfamilies: {known}")
    return families()[model_type]


def of_model(m) -> Family:
    """The family that the model `m` belongs to.

    Raises:
      UsageError: it belongs to none; says why, for each.
    """
    reasons = []
    for family in families().values():
        try:
            family.config(m)
        except UsageError as error:
            reasons.append(f"{family.model_type}: {error}")
        else:
            return family
    raise UsageError("this model is of no family that the hub knows\n" + "\n".join(reasons))
