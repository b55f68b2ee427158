"""When the devices' memory is too small for a run: which arrays are largest, which settings shrink them."""

import contextlib

import jax

from moejax.analysis.memory import largest_buffers
from moejax.errors import UsageError
from moejax.training.program import Program

NUM_SHOWN = 5


@contextlib.contextmanager
def explained(program: Program):
    """Within `with`, and within the program's mesh: a full device is answered with what to change.

    Raises:
      UsageError: what is asked for does not fit; the exit code tells scripts that trying again is no use.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UsageError(_message(program, str(error))) from error


def _message(program: Program, words: str) -> str:
    run = program.run
    return (
        f"the devices have too little memory for this run: {words.splitlines()[0][:300]}\n"
        f"{_largest(program)}"
        f"Raise config.train.accumulate (now {run.train.accumulate}), set config.model.remat=full (now "
        f"{run.model.remat}), or split over more devices with config.mesh.fsdp or config.mesh.expert, and "
        "run the same command again; a new run may also have fewer config.train.batch_rows "
        f"(now {run.train.batch_rows})"
    )


def _largest(program: Program) -> str:
    """The largest arrays of a step, one a line; nothing where the compiler refuses the step for its size."""
    try:
        buffers = largest_buffers(program.compile_step(), NUM_SHOWN)
    except jax.errors.JaxRuntimeError:
        return ""
    return "The largest arrays of a step are\n" + "".join(f"  {buffer}\n" for buffer in buffers)
