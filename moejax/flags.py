"""The command line: absl flags, `--config.PATH=VALUE` overrides, and exit codes.

`main` is what every front door calls. jax is not imported here, so a wrong flag is answered at once.
"""

import dataclasses
import errno
import inspect
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from moejax.errors import MoejaxError, StorageError, UsageError
from moejax.records import suggest

_OVERRIDE = re.compile(r"--?config\.(?P<path>[^=]*)(=(?P<text>.*))?", re.DOTALL)
_VIRTUAL_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # the disk's fault, wherever it shows
_KINDS = {"string": "TEXT", "int": "N", "float": "X"}


@dataclasses.dataclass(frozen=True)
class Call:
    """A parsed command line."""

    flags: flags.FlagValues
    overrides: Mapping[str, str]  # text per path of the config


@dataclasses.dataclass(frozen=True)
class Program:
    """One front door."""

    name: str  # as people type it: "python train.py"
    summary: str  # first lines of --help
    define: Callable[[flags.FlagValues], None]  # declares the program's own flags
    run: Callable[[Call], None]
    takes_config: bool = True

    def __call__(self) -> int:
        """Run with the arguments of the process: the entry point of a console script."""
        return main(self)


def main(program: Program, argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn every error into one message and its exit code.

    Args:
      program: what to run.
      argv: arguments without the program's name; None takes those of the process.

    Returns:
      0, the `exit_code` of a MoejaxError, 130 after Ctrl-C, 141 when nobody reads the output any more,
      or 70 for a bug in moejax.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv or "-debug" in argv
    workdir = None
    try:
        if {"--help", "-help", "-h", "--helpfull"} & set(argv):
            print(usage(program), flush=True)
            return 0
        call = parse(program, argv)
        workdir = call.flags["workdir"].value if "workdir" in call.flags else None
        feed_virtual_devices(os.environ)
        program.run(call)
        sys.stdout.flush()
        return 0
    except MoejaxError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _STORAGE:
            return _report_storage(error, debug)
        return _report_bug(error, workdir, debug)


def parse(program: Program, argv: Sequence[str]) -> Call:
    """Split off the overrides and leave the rest to absl.

    Raises:
      UsageError: an unknown flag, a wrong value, or a positional argument.
    """
    values = define(program)
    try:
        arguments = values.read_flags_from_files(list(argv), force_gnu=False)
        rest, overrides = split_overrides(arguments) if program.takes_config else (arguments, {})
        extra = values([program.name, *rest])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UsageError(_unknown(error, values)) from error
    except flags.Error as error:
        raise UsageError(str(error)) from error
    if extra:
        raise UsageError(f"unexpected argument {extra[0]!r}; settings are flags: --name=value")
    return Call(values, overrides)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate `--config.PATH=TEXT` and `--config.PATH TEXT` from the rest; the last of a path wins."""
    rest, overrides = [], {}
    left = iter(argv)
    for argument in left:
        match = _OVERRIDE.fullmatch(argument)
        if not match:
            rest.append(argument)
            continue
        text = next(left, None) if match["text"] is None else match["text"]
        if text is None or (match["text"] is None and text.startswith("--")):
            raise UsageError(f"{argument} needs a value: {argument}=VALUE")
        overrides[match["path"]] = text
    return rest, overrides


def define(program: Program) -> flags.FlagValues:
    """The program's flags and the one that all programs have, not yet parsed."""
    values = flags.FlagValues()
    program.define(values)
    flags.DEFINE_boolean("debug", False, "print the whole trace of an error", flag_values=values)
    # absl resolves this flag itself, but knows it only where it is declared
    flags.DEFINE_string("flagfile", "", "read more flags from this file, one a line", flag_values=values)
    return values


def usage(program: Program) -> str:
    """What --help prints: every flag with its kind, meaning and default."""
    values = define(program)
    lines = [inspect.cleandoc(program.summary), "", "flags:"]
    for name in values:
        flag = values[name]
        kind = "" if flag.boolean else f"={_KINDS.get(flag.flag_type(), 'TEXT')}"
        default = "" if flag.default in (None, "") or flag.boolean else f" (default {flag.default})"
        lines.append(f"  --{name}{kind}\n      {flag.help}{default}")
    if program.takes_config:
        lines.append("  --config.PATH=VALUE\n      change one setting, for example --config.train.steps=500")
        lines.append("      every PATH is in the table that the start of a run (or --dry_run) prints")
    return "\n".join(lines)


def feed_virtual_devices(environ) -> None:
    """Give XLA two threads per virtual CPU device.

    XLA sizes its pool by the cores. When several steps are under way on more virtual devices than cores,
    a pool of fewer threads deadlocks in the collectives. `NPROC` is the name under which XLA reads its size.
    """
    flag = _VIRTUAL_DEVICES.search(environ.get("XLA_FLAGS", ""))
    devices = int(flag[1]) if flag else int(environ.get("JAX_NUM_CPU_DEVICES") or 0)
    if devices > 1:
        environ.setdefault("NPROC", str(max(2 * devices, os.cpu_count() or 1)))


def _unknown(error: flags.UnrecognizedFlagError, values: flags.FlagValues) -> str:
    name = error.flagname
    if "." in name:
        first, _, rest = name.partition(".")
        path = rest if suggest(first, ["config"]) else name
        return f"unknown flag --{name}; did you mean --config.{path}?"
    known = [f"--{flag}" for flag in values]
    return f"unknown flag --{name}{suggest(f'--{name}', known)}\nflags: {', '.join(known)}"


def _report_storage(error: OSError, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    where = (
        f"{error.filename} could not be written or read" if error.filename else "a file could not be written"
    )
    print(
        f"error: {where}: {error.strerror}; make room or mend the disk, then run the same again",
        file=sys.stderr,
    )
    return StorageError.exit_code


def _report_bug(error: Exception, workdir: str | None, debug: bool) -> int:
    trace = "".join(traceback.format_exception(error))
    if debug:
        print(trace, file=sys.stderr)
    message = f"internal error: {type(error).__name__}: {error}"
    crash = pathlib.Path(workdir, "crash.txt").expanduser() if workdir else None
    if crash and _is_written(crash, trace):
        message += f"\nthe trace is in {crash}"
    print(f"{message}\n--debug prints the trace", file=sys.stderr)
    return MoejaxError.exit_code


def _is_written(path: pathlib.Path, text: str) -> bool:
    """Whether `path` could be written: where a run crashes, the disk may be in a bad state too."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError:
        return False
    return True
