"""`python -m moejax.bench NAME`: every benchmark is a module here with a PROGRAM."""

import importlib
import sys

from moejax import flags

NAMES = ("disaggregation", "generation", "gguf", "kernels", "phase_split", "serving", "training")


def main(argv: list[str]) -> int:
    """Run the benchmark that the first argument names; returns the exit code."""
    if not argv or argv[0] not in NAMES:
        print(f"usage: python -m moejax.bench NAME [flags]\nNAME: {', '.join(NAMES)}", file=sys.stderr)
        return 0 if argv[:1] in (["--help"], ["-h"]) else 2
    program = importlib.import_module(f"moejax.bench.{argv[0]}").PROGRAM
    return flags.main(program, argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
