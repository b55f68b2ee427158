"""`python -m moejax inspect | verify | convert`: models as files."""

import importlib
import sys
from collections.abc import Sequence

from moejax import __version__, flags

COMMANDS = {  # name: arguments that need no --name=
    "inspect": ("model",),
    "verify": ("model",),
    "convert": ("source", "target"),
}
USAGE = """usage: python -m moejax COMMAND ... [flags]

    inspect MODEL              what it is: family, parameters, types, context, tokenizer, files
    verify MODEL               whether it is whole: every file, every tensor, every hash
    convert MODEL TARGET       into the layout of the Hugging Face hub, a GGUF file, or moejax's own

A MODEL is a directory (of a training run, of moejax.save, in the layout of the hub), a GGUF file, or a name:
smollm2, organisation/model. COMMAND --help lists the flags."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--version"]:
        print(f"moejax {__version__}")
        return 0
    if not argv or argv[0] not in COMMANDS:
        asked = argv[:1] in (["--help"], ["-h"])
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    program = importlib.import_module(f"moejax.model_files.{argv[0]}").PROGRAM
    return flags.main(program, named(argv[1:], COMMANDS[argv[0]]))


def named(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The arguments with the first ones that are no flags as --name=."""
    left, found = iter(names), []
    for argument in argv:
        name = None if argument.startswith("-") else next(left, None)
        found.append(argument if name is None else f"--{name}={argument}")
    return found


if __name__ == "__main__":
    sys.exit(main())
