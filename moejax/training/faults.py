"""Faults on purpose: what breaks, and when, read once from the environment.

`MOEJAX_FAULTS="step=17:kill,batch=9+:nan,save=3:enospc,point=before_rename:exit"` is a comma-separated
list of `place=when:what`. `when` is a step (also for `batch` and `gradient`) or the how-manieth save of this
process (counted from 1); `9+` means from there on; for `point` it is a name of `POINTS`. It works only beside
`MOEJAX_TESTING=1`, so that no real run is broken by a forgotten variable.
"""

import dataclasses
import errno
import functools
import os
import signal
import time

from moejax.errors import UsageError

# The commit protocol of a checkpoint, in order; the process can be made to die at each of them.
POINTS = (
    "temp_made",
    "arrays_written",
    "files_synced",
    "manifest_written",
    "manifest_synced",
    "before_rename",
    "old_aside",
    "after_rename",
    "committed",
    "before_prune",
    "trash_named",
    "pruned",
)

WHAT = {
    "step": ("kill", "term", "int", "hang", "flip", "nan"),
    "batch": ("nan", "inf", "spike"),
    "gradient": ("nan", "inf"),
    "save": ("enospc", "eio", "fail"),
    "point": ("exit",),
}

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}

EXIT_AT_POINT = 9  # what a process that dies at a point exits with


@dataclasses.dataclass(frozen=True)
class Fault:
    """`what` happens at `place` number `at` (and after it, if `onwards`), or at the point called `at`."""

    place: str
    at: int | str
    what: str
    onwards: bool = False

    def hits(self, place: str, at: int | str) -> bool:
        """Whether this fault happens at `place` `at`."""
        if place != self.place:
            return False
        return at >= self.at if self.onwards else at == self.at


@dataclasses.dataclass(frozen=True)
class FaultPlan:
    """All faults of a process; the empty plan breaks nothing."""

    faults: tuple[Fault, ...] = ()

    def at(self, place: str, at: int | str) -> str | None:
        """What happens at `place` `at`, or None."""
        return next((fault.what for fault in self.faults if fault.hits(place, at)), None)


def parse(text: str) -> FaultPlan:
    """Read `place=when:what,...`.

    Raises:
        UsageError: the text names a place, point or fault that does not exist.
    """
    return FaultPlan(tuple(_parse_fault(item.strip()) for item in text.split(",") if item.strip()))


def _parse_fault(item: str) -> Fault:
    place, _, rest = item.partition("=")
    when, _, what = rest.rpartition(":")
    if place not in WHAT:
        raise UsageError(f"MOEJAX_FAULTS: {item!r} has place {place!r}, expected one of {', '.join(WHAT)}")
    if what not in WHAT[place]:
        raise UsageError(f"MOEJAX_FAULTS: {item!r} does {what!r}, expected one of {', '.join(WHAT[place])}")
    if place == "point":
        if when not in POINTS:
            raise UsageError(
                f"MOEJAX_FAULTS: {item!r} names point {when!r}, expected one of {', '.join(POINTS)}"
            )
        return Fault(place, when, what)
    number = when.removesuffix("+")
    if not number.isdecimal():
        raise UsageError(f"MOEJAX_FAULTS: {item!r} happens at {when!r}, expected a number such as 17, or 17+")
    return Fault(place, int(number), what, onwards=when.endswith("+"))


@functools.cache
def plan() -> FaultPlan:
    """The faults of this process.

    Raises:
        UsageError: MOEJAX_FAULTS is malformed, or set without MOEJAX_TESTING=1.
    """
    text = os.environ.get("MOEJAX_FAULTS", "")
    if text and os.environ.get("MOEJAX_TESTING") != "1":
        raise UsageError(
            f"MOEJAX_FAULTS={text!r} breaks runs on purpose; unset it, or set MOEJAX_TESTING=1 as well"
        )
    return parse(text)


def reach(point: str) -> None:
    """Die here, without any clean-up, if the plan says so."""
    if plan().at("point", point):
        os._exit(EXIT_AT_POINT)


def fail_save(count: int) -> None:
    """Fail the `count`-th save of this process, if the plan says so."""
    what = plan().at("save", count)
    if what == "fail":
        raise RuntimeError("injected failure")
    if what:
        code = {"enospc": errno.ENOSPC, "eio": errno.EIO}[what]
        raise OSError(code, os.strerror(code))


def strike(step: int) -> None:
    """Do to this process what the plan says for `step`: kill, interrupt, or hang it."""
    what = plan().at("step", step)
    if what in SIGNALS:
        os.kill(os.getpid(), SIGNALS[what])
        time.sleep(0.2)  # for the thread that takes signals: the step may be over before it wakes
    elif what == "hang":
        time.sleep(3600)


def spoil(step: int, batch: dict) -> dict:
    """The batch as the plan wants it: weights that are not finite, or targets that nobody could expect."""
    what = plan().at("batch", step)
    if what == "spike":
        return {**batch, "target": 0 * batch["target"]}
    return batch if what is None else {**batch, "weight": batch["weight"] * float(what)}


def flip(step: int, state):
    """The state with the lowest bit of one parameter flipped, if the plan says so for `step`."""
    if plan().at("step", step) != "flip":
        return state
    import jax

    leaves, tree = jax.tree.flatten(state)
    index = max(range(len(leaves)), key=lambda i: leaves[i].size)
    flat = leaves[index].ravel()
    leaves[index] = flat.at[0].set(jax.numpy.nextafter(flat[0], flat[0] + 1)).reshape(leaves[index].shape)
    return jax.tree.unflatten(tree, leaves)


def break_expert(step: int, params):
    """The parameters, in which one expert's weights are NaN if the plan says so for `step`."""
    if plan().at("step", step) != "nan":
        return params
    return _change_bank(params, lambda bank: bank.at[(0,) * (bank.ndim - 2)].set(float("nan")))


def break_gradient(step, grads):
    """The gradients, of which one leaf is not finite at the planned steps; `step` is traced."""
    for fault in plan().faults:
        if fault.place == "gradient":
            hit, value = fault.hits("gradient", step), float(fault.what)
            grads = _change_bank(grads, lambda bank, hit=hit, value=value: _where(hit, value, bank))
    return grads


def _where(hit, value, bank):
    import jax.numpy as jnp

    return jnp.where(hit, value, bank)


def _change_bank(tree, change):
    """The tree with `change` done to the experts' up-projections."""
    import jax

    def at(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return change(leaf) if name.endswith("experts/up") else leaf

    return jax.tree_util.tree_map_with_path(at, tree)
