"""Which implementation of an op serves: the one that was asked for, or the best of the platform that can.

An op's table names its implementations, best first. Each is a module with the op's functions and with

- `PLATFORM`: "tpu" or "cuda", or None for one of plain XLA operations, which runs everywhere;
- `refusal(function, *operands, **static)`: why it cannot serve these operands, or None. It is not asked about
  functions that the module does not have.
"""

from collections.abc import Mapping
from types import ModuleType

import jax
from jax import lax

from pallas_kernels.errors import NotServedError


def platform() -> str:
    """The platform that programs are traced for: that of the mesh in use, else of the default device.

    A program for another platform (an export, an ahead-of-time compile) is traced under a mesh of that
    platform; without one it gets the implementation that runs everywhere.
    """
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    default = jax.config.jax_default_device
    name = abstract.platform if abstract else getattr(default, "platform", default) or jax.default_backend()
    return "cuda" if name == "gpu" else name


def run(table: Mapping[str, ModuleType], function: str, asked: str | None, operands, **static):
    """Call a function of the implementation `asked` for, or of the best one that serves these operands.

    Raises:
      ValueError: `asked` is not in the table.
      NotServedError: it is, but refuses.
    """
    if asked is not None:
        return _bound(_asked(table, function, asked, operands, static), function, static)(*operands)
    served = [module for module in table.values() if not _refusal(module, function, operands, static)]
    everywhere = next(module for module in served if module.PLATFORM is None)
    best = next((module for module in served if module.PLATFORM in (None, platform())), everywhere)
    if best is everywhere:
        return _bound(everywhere, function, static)(*operands)
    # Where the program is lowered for another platform after all, it still runs.
    by_platform = {best.PLATFORM: _bound(best, function, static)}
    return lax.platform_dependent(*operands, **by_platform, default=_bound(everywhere, function, static))


def _bound(module: ModuleType, function: str, static):
    return lambda *operands: getattr(module, function)(*operands, **static)


def _refusal(module: ModuleType, function: str, operands, static) -> str | None:
    if not hasattr(module, function):
        return f"it has no {function}"
    return module.refusal(function, *operands, **static)


def _asked(table, function: str, asked: str, operands, static) -> ModuleType:
    if asked not in table:
        raise ValueError(f"implementation={asked!r} is not one of {', '.join(table)}")
    why = _refusal(table[asked], function, operands, static)
    if why:
        here = {name: other for name, other in table.items() if other.PLATFORM in (None, platform())}
        able = [name for name, other in here.items() if not _refusal(other, function, operands, static)]
        shapes = ", ".join(str(jax.typeof(x)) for x in jax.tree.leaves(operands))
        raise NotServedError(
            f"implementation={asked!r} cannot serve {function}({shapes}): {why}; "
            f"implementation={able[0]!r} can, and implementation=None picks"
        )
    return table[asked]
