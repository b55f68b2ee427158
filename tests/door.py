"""A front door for the tests of the command line: resolves the settings, and ends as it is told."""

import sys

from absl import flags as absl_flags

from moejax import errors, flags, overrides, recipes

FAILURES = {"bug": ZeroDivisionError, "retry": errors.RetryError, "interrupt": KeyboardInterrupt}


def define(values):
    absl_flags.DEFINE_string("config", "configs/tiny.py", "recipe, FILE[:FUNCTION]", flag_values=values)
    absl_flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)
    absl_flags.DEFINE_integer("retries", 3, "tries per file", lower_bound=0, flag_values=values)
    absl_flags.DEFINE_boolean("dry_run", False, "print the settings and stop", flag_values=values)
    absl_flags.DEFINE_enum("fail", None, sorted(FAILURES), "how to end", flag_values=values)


def run(call):
    if call.flags.fail:
        raise FAILURES[call.flags.fail]("as told")
    resolved = recipes.resolve(call.flags.config, call.overrides)
    print(overrides.dumps(resolved) if call.flags.dry_run else overrides.table(resolved))


PROGRAM = flags.Program("python door.py", "A door.\n\n    python door.py --config=FILE", define, run)

if __name__ == "__main__":
    sys.exit(flags.main(PROGRAM))
