"""Faults on purpose: the plan is read strictly, and only where it cannot hurt a real run."""

import errno
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.errors import UsageError
from moejax.training import faults


def python(code, **env):
    env = {**os.environ, "PYTHONPATH": os.getcwd(), **env}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)


def test_worked_example():
    plan = faults.parse("step=17:kill, save=3:enospc,batch=9+:nan,point=before_rename:exit")
    assert plan.at("step", 17) == "kill"
    assert plan.at("step", 18) is None
    assert plan.at("save", 3) == "enospc"
    assert [plan.at("batch", n) for n in (8, 9, 10)] == [None, "nan", "nan"]
    assert plan.at("point", "before_rename") == "exit"
    assert faults.parse("").faults == ()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("stap=1:kill", "'stap'"),
        ("step=1:explode", "'explode'"),
        ("step=one:kill", "'one'"),
        ("step=-1:kill", "'-1'"),
        ("point=nowhere:exit", "'nowhere'"),
        ("nonsense", "'nonsense'"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(text, named):
    with pytest.raises(UsageError, match=named):
        faults.parse(text)


def test_a_forgotten_variable_breaks_no_real_run():
    code = "from moejax.training import faults; faults.plan()"
    refused = python(code, MOEJAX_FAULTS="step=1:kill", MOEJAX_TESTING="")
    assert refused.returncode != 0
    assert "UsageError" in refused.stderr and "MOEJAX_TESTING=1" in refused.stderr
    assert python(code, MOEJAX_FAULTS="step=1:kill", MOEJAX_TESTING="1").returncode == 0


def test_reach_dies_at_its_point_only():
    code = "from moejax.training.faults import reach; reach('committed'); print('on'); reach('pruned')"
    died = python(code, MOEJAX_FAULTS="point=pruned:exit", MOEJAX_TESTING="1")
    assert died.returncode == faults.EXIT_AT_POINT
    died = python(code, MOEJAX_FAULTS="point=committed:exit", MOEJAX_TESTING="1")
    assert (died.returncode, died.stdout) == (faults.EXIT_AT_POINT, "")


def test_weights_and_gradients_break_as_planned(monkeypatch):
    """The first expert of the first layer; one gradient leaf, at traced steps, and from one on."""
    plan = "step=2:nan,gradient=3:nan,gradient=5+:inf"
    monkeypatch.setattr(faults, "plan", lambda: faults.parse(plan))
    tree = {"experts": {"up": np.ones((2, 3, 4, 5), np.float32), "down": np.ones(2, np.float32)}}
    tree = jax.tree.map(jnp.asarray, tree)
    assert faults.break_expert(1, tree) is tree
    broken = faults.break_expert(2, tree)["experts"]
    assert np.isnan(broken["up"][0, 0]).all() and np.isfinite(broken["up"]).sum() == 100
    assert np.isfinite(broken["down"]).all()
    ruin = jax.jit(faults.break_gradient)
    seen = [np.ravel(ruin(step, tree)["experts"]["up"])[0] for step in range(1, 7)]
    np.testing.assert_array_equal(seen, [1, 1, np.nan, 1, np.inf, np.inf])
    assert np.isfinite(ruin(3, tree)["experts"]["down"]).all()


def test_saves_fail_as_planned(monkeypatch):
    monkeypatch.setattr(faults, "plan", lambda: faults.parse("save=2:enospc,save=3:eio,save=4:fail"))
    faults.fail_save(1)
    for count, code in ((2, errno.ENOSPC), (3, errno.EIO)):
        with pytest.raises(OSError) as caught:
            faults.fail_save(count)
        assert caught.value.errno == code
    with pytest.raises(RuntimeError):
        faults.fail_save(4)
