"""`python -m moejax.bench`: published results (`run NAME`), and measurements that have flags of their own."""

import importlib
import itertools
import sys

from moejax import flags

# Each is a module here with a PROGRAM.
NAMES = ("disaggregation", "generation", "gguf", "kernels", "phase_split", "scaling", "serving", "training")


def main(argv: list[str]) -> int:
    """Run what the first argument names; returns the exit code."""
    from moejax.bench import runner

    if argv and argv[0] in runner.ACTIONS:
        names = tuple(itertools.takewhile(lambda word: not word.startswith("-"), argv[1:]))
        return flags.main(runner.program(argv[0], names), argv[1 + len(names) :])
    if argv and argv[0] in NAMES:
        program = importlib.import_module(f"moejax.bench.{argv[0]}").PROGRAM
        return flags.main(program, argv[1:])
    print(
        f"{runner.SUMMARY}\nmeasurements: python -m moejax.bench {{{','.join(NAMES)}}} [flags]",
        file=sys.stderr,
    )
    return 0 if argv[:1] in (["--help"], ["-h"]) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
