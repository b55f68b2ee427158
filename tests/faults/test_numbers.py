"""F10 and F11: batches that are not numbers, losses that jump, bits that flip."""

import json

import numpy as np

from moejax.training import metrics
from tests.faults import trainer

EVERY_STEP = ("--config.train.checkpoint.every=1", "--config.train.checkpoint.keep_last=100")


def moved(run_dir, before: int, after: int) -> set[str]:
    """First path parts of the leaves that differ between two checkpoints."""
    differing = trainer.differing(trainer.saved(run_dir, before), trainer.saved(run_dir, after))
    return {name.partition("/")[0] for name in differing} - {"step", "meta"}


def all_finite(run_dir) -> bool:
    leaves = [leaf for step in trainer.steps(run_dir) for leaf in trainer.saved(run_dir, step).leaf.values()]
    return all(np.isfinite(leaf).all() for leaf in leaves)


def test_updates_that_are_not_finite_are_not_applied(train, tmp_path):
    ended = train(tmp_path, "--config.train.steps=9", *EVERY_STEP, faults="batch=4:nan,batch=7:inf")
    assert ended.code == 0, ended.output
    lines = {line["step"]: line for line in metrics.read(tmp_path) if "train/loss" in line}
    assert {step: line["health/skipped"] for step, line in lines.items()} == {
        step: int(step in (4, 7)) for step in range(1, 10)
    }
    assert [step for step, line in lines.items() if line["train/loss"] is None] == [4, 7]
    for step in range(2, 10):
        expected = {"skipped"} if step in (4, 7) else {"params", "opt_state"}
        assert moved(tmp_path, step - 1, step) & {"params", "opt_state", "skipped"} >= expected
        assert ("params" in moved(tmp_path, step - 1, step)) == (step not in (4, 7))
    assert all_finite(tmp_path)


def test_a_run_of_bad_batches_ends(train, tmp_path):
    ended = train(tmp_path, "--config.train.max_skipped=3", *EVERY_STEP, faults="batch=6+:nan")
    assert ended.code == 76, ended.output
    assert "3 updates in a row up to step" in ended.output
    (path,) = tmp_path.glob("skipped-*.json")
    assert str(path) in ended.output
    bundle = json.loads(path.read_text())
    assert bundle["skipped_in_a_row"] == 3
    finite = bundle["finite"]
    assert not any(flag for name, flag in finite.items() if name.startswith("gradient/"))
    assert all(flag for name, flag in finite.items() if not name.startswith("gradient/"))
    assert bundle["batches"]["seen"]
    last = max(trainer.steps(tmp_path))
    assert last >= 6
    assert moved(tmp_path, 5, last) == {"skipped"}
    assert all_finite(tmp_path)


def bad_leaves(run_dir) -> list[str]:
    (path,) = run_dir.glob("skipped-*.json")
    return [name for name, finite in json.loads(path.read_text())["finite"].items() if not finite]


def test_one_bad_gradient_leaf_stops_the_whole_update(train, tmp_path):
    """The loss is a number all the while; the leaf is named when the run gives up."""
    ended = train(
        tmp_path, "--config.train.max_skipped=3", *EVERY_STEP, faults="gradient=4:inf,gradient=6+:nan"
    )
    assert ended.code == 76, ended.output
    lines = {line["step"]: line for line in metrics.read(tmp_path) if "train/loss" in line}
    assert all(np.isfinite(line["train/loss"]) for line in lines.values())
    assert [step for step, line in lines.items() if line["train/grad_norm"] is None] == [4, 6, 7, 8]
    for step in (4, 6, 7, 8):
        assert moved(tmp_path, step - 1, step) == {"skipped"}
    assert "params" in moved(tmp_path, 4, 5)
    assert bad_leaves(tmp_path) == ["gradient/group0/block0/ffn/experts/up"]
    assert "not finite: gradient/group0/block0/ffn/experts/up;" in ended.output
    assert all_finite(tmp_path)


def test_broken_weights_are_named_and_never_saved(train, straight, tmp_path):
    """One expert's weights turn to NaN in memory, between two saves: the same command goes on before that."""
    ended = train(tmp_path, "--config.train.max_skipped=3", faults="step=7:nan")
    assert ended.code == 76, ended.output
    assert "3 updates in a row up to step" in ended.output
    assert "not finite: params/group0/block0/ffn/experts/up;" in ended.output
    assert bad_leaves(tmp_path)[0] == "params/group0/block0/ffn/experts/up"
    assert trainer.steps(tmp_path) == [5]
    assert all_finite(tmp_path)
    assert train(tmp_path).code == 0
    assert trainer.differing(trainer.saved(tmp_path), trainer.saved(straight)) == []


def test_a_state_that_is_not_finite_is_not_saved(train, tmp_path):
    ended = train(tmp_path, *EVERY_STEP, faults="step=7:nan")
    assert ended.code == 76, ended.output
    assert "the state of step 7 is not finite and was not saved" in ended.output
    assert "not finite: params/group0/block0/ffn/experts/up;" in ended.output
    assert "goes on from the newest checkpoint" in ended.output
    assert trainer.steps(tmp_path) == list(range(1, 7))
    assert all_finite(tmp_path)


def test_a_spike_is_skipped(train, tmp_path):
    flags = ("--config.train.spike_factor=1.3", "--config.train.optim.learning_rate=3e-2", *EVERY_STEP)
    ended = train(tmp_path, *flags, "--config.train.steps=27", faults="batch=25:spike")
    assert ended.code == 0, ended.output
    skipped = [line["step"] for line in metrics.read(tmp_path) if line.get("health/skipped")]
    assert skipped == [25]
    assert moved(tmp_path, 24, 25) == {"skipped"}
    assert "params" in moved(tmp_path, 25, 26)


def test_a_flipped_bit_is_reported_and_repaired(train, straight, tmp_path):
    flags = ("--config.train.verify_every=4", "--config.train.checkpoint.keep_last=100")
    ended = train(tmp_path, *flags, faults="step=8:flip")
    assert ended.code == 0, ended.output
    (line,) = (line for line in ended.output.splitlines() if "silent data corruption" in line)
    assert "step 8 gave different bits for " in line
    assert "params" in line or "opt_state" in line
    assert line.endswith("(transient: two of three runs agree)")
    assert trainer.differing(trainer.saved(tmp_path, 10), trainer.saved(straight, 10)) == []
