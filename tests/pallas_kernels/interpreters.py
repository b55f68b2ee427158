"""Kernels of accelerators that are not here, run step by step by jax's interpreters."""

import contextlib

import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


@contextlib.contextmanager
def pallas_calls(tpu: pltpu.InterpretParams | None = None):
    """Interpret kernels for TPU as strictly as `tpu` says, and all others of `pallas_call` loosely.

    By default TPU kernels that read out of bounds raise; outputs hold NaN before they are written.
    """
    call = pl.pallas_call

    def interpreted(*args, compiler_params=None, **kwargs):
        strictly = isinstance(compiler_params, pltpu.CompilerParams)
        how = (tpu or pltpu.InterpretParams()) if strictly else True
        return call(*args, compiler_params=compiler_params, interpret=how, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl, "pallas_call", interpreted)
        yield
