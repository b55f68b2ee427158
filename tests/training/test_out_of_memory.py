"""A device that is full is answered with what to change."""

import jax
import pytest

from configs import base
from moejax.errors import UsageError
from moejax.training import out_of_memory
from moejax.training.program import build

FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes.\nand a very long table"


def test_the_largest_arrays_and_the_settings_are_named():
    with pytest.raises(UsageError) as told, out_of_memory.explained(build(base.tiny())):
        raise jax.errors.JaxRuntimeError(FULL)
    lines = str(told.value).splitlines()
    assert lines[0].endswith("too little memory for this run: " + FULL.splitlines()[0])
    assert lines[1] == "The largest arrays of a step are"
    assert len(lines) == 2 + out_of_memory.NUM_SHOWN + 1
    assert all(" MiB " in line for line in lines[2:-1])
    for path in (
        "train.accumulate (now 1)",
        "model.remat=full (now none)",
        "mesh.fsdp",
        "train.batch_rows (now 8)",
    ):
        assert path in lines[-1]


def test_a_step_that_the_compiler_refuses(monkeypatch):
    def refuse(program):
        raise jax.errors.JaxRuntimeError(FULL)

    monkeypatch.setattr(out_of_memory.Program, "compile_step", refuse)
    with pytest.raises(UsageError, match="too little memory"), out_of_memory.explained(build(base.tiny())):
        raise jax.errors.JaxRuntimeError(FULL)


def test_other_errors_pass():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        out_of_memory.explained(build(base.tiny())),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
