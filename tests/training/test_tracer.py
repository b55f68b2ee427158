"""Traces of a run: of the rows of a step on any layout, and of held-out text at the end."""

import dataclasses
import pathlib

import numpy as np
import pytest

from configs import base
from moejax import overrides
from moejax.analysis.routing.trace import RoutingTrace
from moejax.config import BlockConfig, Group, MeshConfig, UsageError
from moejax.ffn.dense import Dense
from moejax.training import tracer
from moejax.training.loop import train
from moejax.training.program import build
from moejax.training.state import TrainState
from tests.contracts import tiny
from tests.faults import recipe
from tests.faults.conftest import write_text

MESHES = {"one": {}, "rows": {"data": 4}, "experts": {"expert": 2, "tensor": 2}}


def run(*blocks, **mesh):
    groups = (Group(blocks or (BlockConfig(tiny.ATTN, tiny.MOE),), 2),)
    tiny_run = base.tiny()
    return dataclasses.replace(
        tiny_run,
        model=dataclasses.replace(tiny.model(), groups=groups),
        train=dataclasses.replace(
            tiny_run.train, batch_rows=8, seq_len=6, accumulate=2, trace_every=3, trace_rows=3
        ),
        mesh=MeshConfig(**mesh),
    )


def state(program) -> TrainState:
    """What routing depends on."""
    m = program.run.model
    first = dict.fromkeys(("step", "opt_state", "applied", "loss_mean", "skipped"))
    losses = tuple(loss.init(m) for loss in program.losses)
    return TrainState(params=tiny.params(m, program.mesh), loss_state=losses, **first)


def traced(**mesh) -> RoutingTrace:
    """Of the first micro-batch's first three rows: rows 0, 2 and 4 of the batch."""
    program = build(run(**mesh))
    with program.mesh_context():
        batch = tiny.batch(0)
        names = {
            "token": "token_BT",
            "pos": "pos_BT",
            "seg": "seg_BT",
            "target": "target_BT",
            "weight": "weight_BT",
        }
        placed = program.place({name: getattr(batch, field) for name, field in names.items()})
        return tracer.Tracer(program, 3, accumulate=2).trace(state(program), [placed], 9)


@pytest.mark.parametrize("mesh", MESHES)
def test_the_rows_of_a_step_on_any_layout(mesh):
    trace = traced(**MESHES[mesh])
    batch = tiny.batch(0)
    for row, own in enumerate((0, 2, 4)):
        at = trace.row_N == row
        valid = batch.valid_BT[own]
        np.testing.assert_array_equal(trace.token_N[at], batch.token_BT[own][valid])
        np.testing.assert_array_equal(trace.pos_N[at], batch.pos_BT[own][valid])
    assert (trace.num_texts, trace.name, trace.step) == (6, "tiny", 9)  # two documents a row
    np.testing.assert_array_equal(trace.expert_LNK, traced().expert_LNK)


def test_a_dense_model_has_no_traces():
    program = build(run(BlockConfig(tiny.ATTN, Dense(8))))
    assert not tracer.Tracer(program, 1).has_routers
    with pytest.raises(UsageError, match=r"train\.trace_every=3 traces routers, but the model has none"):
        tracer.StepTracer(program, pathlib.Path())


def test_a_run_leaves_its_traces(tmp_path):
    write_text(tmp_path / "text.py")
    changes = {"train.steps": "4", "train.trace_every": "2", "train.trace_rows": "2", "train.eval_every": "0"}
    data = {"data.source": str(tmp_path / "text.py"), "data.cache_dir": str(tmp_path / "cache")}
    result = train(overrides.resolve(recipe.config(), "recipe", changes | data), tmp_path / "run")
    files = sorted(path.name for path in (result.run_dir / "traces").iterdir())
    assert files == ["step_2.npz", "step_4.npz"]
    steps = [RoutingTrace.load(result.run_dir / "traces" / name) for name in files]
    assert [(trace.step, trace.row_N.max()) for trace in steps] == [(2, 1), (4, 1)]
    held_out = RoutingTrace.load(result.run_dir / "routing.npz")
    assert (held_out.step, held_out.labels[0]) == (4, "identifier")
    assert held_out.score_LNE is not None
