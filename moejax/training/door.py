"""What `train.py` does: flags to a run, one writer per directory, then the loop."""

import contextlib
import logging
import os
import pathlib
import re
import socket
import sys
import time
import typing

from absl import flags

from moejax import compile_cache
from moejax.errors import RetryError, StorageError, UsageError
from moejax.flags import Call, Program
from moejax.host_memory import keep_pages
from moejax.overrides import Resolved, table
from moejax.recipes import resolve
from moejax.training.run_lock import RunLock
from moejax.training.step_store import StepStore

if typing.TYPE_CHECKING:  # it imports jax
    from moejax.training.loop import Result

SUMMARY = """
Train a mixture-of-experts language model, or go on where the same command stopped.

    python train.py --config=configs/default.py --workdir=runs/default
    python train.py --config=configs/default.py --workdir=runs/longer --config.train.steps=5000
    python train.py --config=configs/small.py --dry_run
"""

START_SECONDS = 300.0  # that the processes of a run may start apart


def define(values: flags.FlagValues) -> None:
    """The flags of train.py."""
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("config", "configs/default.py", "recipe, FILE.py or FILE.py:FUNCTION", flag_values=values)
    text("workdir", None, "directory of the run; everything it writes is in it", flag_values=values)
    flags.DEFINE_boolean(
        "dry_run", False, "print parameters, FLOPs and memory; train nothing", flag_values=values
    )
    text("coordinator", None, "HOST:PORT of process 0, for a run of several processes", flag_values=values)
    number("num_processes", 1, "processes of the run", lower_bound=1, flag_values=values)
    number("process_id", 0, "which of them this is", lower_bound=0, flag_values=values)


def run(call: Call) -> None:
    """Resolve the config, take the lock, train."""
    values = call.flags
    _check_processes(values)
    if values["dry_run"].value:
        _prepare_process(values)
        return _dry_run(resolve(values["config"].value, call.overrides))
    if not values["workdir"].value:
        raise UsageError(
            "--workdir is missing; name the directory of the run, for example --workdir=runs/first"
        )
    workdir = pathlib.Path(values["workdir"].value).expanduser()
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file; name a directory, which may be new")
    with contextlib.ExitStack() as stack:
        lock = RunLock(workdir) if values["process_id"].value == 0 else contextlib.nullcontext()
        # Only a directory that is there can have another writer: then it is asked first, before jax.
        if workdir.exists():
            stack.enter_context(lock)
        resolved = resolve(values["config"].value, call.overrides)
        if not workdir.exists():
            stack.enter_context(lock)
        _prepare_process(values)
        _train(resolved, workdir, is_first=values["process_id"].value == 0)


def _check_processes(values: flags.FlagValues) -> None:
    count, index, coordinator = (
        values[name].value for name in ("num_processes", "process_id", "coordinator")
    )
    if index >= count:
        raise UsageError(f"--process_id={index} must be below --num_processes={count}; the first is 0")
    if count > 1 and not re.fullmatch(r".+:\d+", coordinator or ""):
        raise UsageError(
            f"--num_processes={count} needs --coordinator=HOST:PORT, the address of process 0; "
            f"it is {coordinator}"
        )


def _train(resolved: Resolved, workdir: pathlib.Path, is_first: bool) -> None:
    from moejax.training.loop import train

    if is_first:
        print(table(resolved), flush=True)
    with _leaving_without_peers(workdir), _naming_a_full_disk(workdir):
        result = train(resolved, workdir)
    if is_first:
        _tell(result)


def _tell(result: "Result") -> None:
    marks = ", ".join(f"{name} {bits:.3f}" for name, bits in result.baselines.items())
    print(
        f"done: {result.step} steps in {result.seconds:.0f} s; held-out bits per byte "
        f"{result.bits_per_byte:.3f} ({marks}); open {result.run_dir / 'report.html'}"
    )


@contextlib.contextmanager
def _leaving_without_peers(workdir: pathlib.Path):
    """End this process at once when another one of the run is gone: an orderly exit would wait for it."""
    from moejax.training import peers

    try:
        yield
    except Exception as error:
        if not peers.is_loss(error):
            raise
        cause = " ".join(str(error).split())[:200]
        saved = StepStore(workdir).steps()
        last = f"checkpoint {saved[-1]}" if saved else "the beginning"
        told = f"error: lost a process of this run ({cause}); run all of them again to go on from {last}"
        print(told, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(RetryError.exit_code)


@contextlib.contextmanager
def _naming_a_full_disk(workdir: pathlib.Path):
    """Checkpoints answer for themselves; the settings, samples and the report meet a full disk here."""
    from moejax.training.background_save import is_disk_full

    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        told = f"the disk of {workdir} is full ({error}); make room and run the same command again"
        raise StorageError(told) from error


def _dry_run(resolved: Resolved) -> None:
    from moejax.training.program import price

    print(table(resolved))
    print()
    print(price(resolved.config).table())


def _prepare_process(values: flags.FlagValues) -> None:
    """Logging, the compilation cache and the other processes, before the first use of a device."""
    keep_pages()
    import jax

    logging.basicConfig(format="%(message)s")  # warnings of everyone
    logging.getLogger("moejax").setLevel(logging.INFO if values["process_id"].value == 0 else logging.WARNING)
    compile_cache.use()
    if values["num_processes"].value > 1:
        coordinator, index = values["coordinator"].value, values["process_id"].value
        if index > 0:
            await_first(coordinator)
        jax.distributed.initialize(
            coordinator,
            values["num_processes"].value,
            index,
            # JAX would listen on every interface, and it asks nobody for a password.
            coordinator_bind_address=coordinator if index == 0 else None,
        )


def await_first(coordinator: str) -> None:
    """Wait until process 0 listens: JAX, which waits as long, aborts the process if it never does.

    Raises:
      RetryError: it did not for START_SECONDS; it may have been refused.
    """
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            if time.monotonic() > end:
                raise RetryError(
                    f"process 0 does not listen at --coordinator={coordinator} ({error}); if it was refused, "
                    "its own output says why; start all processes again"
                ) from error
        time.sleep(0.1)


PROGRAM = Program("python train.py", SUMMARY, define, run)
