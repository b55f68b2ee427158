"""The public functions: their examples run, a model comes back from its directory, errors say what to do."""

import dataclasses
import doctest
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moejax
from configs import base
from moejax import overrides
from moejax.errors import CheckpointError, UsageError
from moejax.losses.loss_free import LossFreeBias
from moejax.seams import Scorer
from moejax.training.checkpoint import Checkpointer
from moejax.training.data.tokenizer import byte_tokenizer

TEXTS = [[1, 104, 105], [1, 104]]


@pytest.fixture(scope="module")
def model():
    cfg = base.tiny().model
    return moejax.Model(cfg, moejax.init(jax.random.key(0), cfg), byte_tokenizer(), context=32)


def assert_same_params(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("name", ["forward", "generate", "init", "load", "save", "train"])
def test_the_examples_in_the_docstrings_run(name):
    found = doctest.DocTestFinder().find(getattr(moejax, name), name, globs={})
    examples = [test for test in found if test.examples]
    assert len(examples) == 1, f"{name} has no example"
    assert doctest.DocTestRunner().run(examples[0]).failed == 0


def test_importing_moejax_imports_nothing_else():
    code = "import sys, moejax; print(moejax.__version__, 'jax' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [moejax.__version__, "False", "False"]


def test_what_is_exported():
    assert set(moejax.__all__) <= set(dir(moejax))
    with pytest.raises(AttributeError, match="'fit'; it has Completion"):
        moejax.fit  # noqa: B018


def test_forward_does_not_see_the_padding(model):
    both = moejax.forward(model.params, model.cfg, TEXTS)
    alone = moejax.forward(model.params, model.cfg, np.array([TEXTS[1]]))
    np.testing.assert_allclose(both.logits[1, :2], alone.logits[0], atol=1e-5)
    assert both.logits is both.logits_BTV


def test_forward_can_be_traced(model):
    traced = jax.jit(lambda tokens: moejax.forward(model.params, model.cfg, tokens).logits)
    one = traced(jnp.array([TEXTS[0]]))
    np.testing.assert_allclose(one, moejax.forward(model.params, model.cfg, [TEXTS[0]]).logits, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([1, 2], r"tokens\[0\] is int64 \(\); give whole numbers"),
        ([[1], [0.5]], r"tokens\[1\] is float64 \(1,\)"),
        ([[1, 272]], r"tokens\[0\] has ids outside 0 to 271"),
        ([[-1]], r"tokens\[0\] has ids outside"),
        (jnp.zeros((1, 2)), r"tokens is float32 \(1, 2\); give whole numbers \[B, T\]"),
    ],
)
def test_forward_refuses_what_are_no_tokens(model, tokens, words):
    with pytest.raises(UsageError, match=words):
        moejax.forward(model.params, model.cfg, tokens)


def test_init_wants_a_model_config():
    with pytest.raises(UsageError, match=r"cfg is a Run; give a ModelConfig, such as run\.model"):
        moejax.init(jax.random.key(0), base.tiny())


def test_save_and_load(model, tmp_path):
    bias = jax.tree.map(lambda bias_LE: bias_LE.at[:, 1].add(0.5), LossFreeBias().init(model.cfg))
    for name, sides in (("plain", None), ("biased", LossFreeBias().side(bias))):
        moejax.save(dataclasses.replace(model, sides=sides), tmp_path / name)
        back = moejax.load(tmp_path / name)
        assert (back.cfg, back.context) == (model.cfg, model.context)
        assert back.tokenizer.to_json() == model.tokenizer.to_json()
        assert jax.tree.structure(back.sides) == jax.tree.structure(sides)
        assert_same_params((back.params, back.sides), (model.params, sides))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["biased", "plain"]
    with pytest.raises(UsageError, match="exists already"):
        moejax.save(model, tmp_path / "plain")


def run_directory(path, model, run, state=None):
    """What training leaves."""
    path.mkdir()
    (path / "config.json").write_text(overrides.dumps(overrides.resolve(run, "test", {})))
    model.tokenizer.save(path / "tokenizer.json")
    if state is not None:
        checkpoints = Checkpointer(path, run.train.checkpoint)
        checkpoints.save(7, state, {})
        checkpoints.wait()


def test_load_reads_the_parameters_of_a_run_and_what_its_controller_learned(model, tmp_path):
    run = base.tiny()
    losses = (*run.train.losses, LossFreeBias())
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, losses=losses))
    loss_state = tuple(loss.init(run.model) for loss in losses)
    loss_state = jax.tree.map(lambda bias_LE: bias_LE + 2.0, loss_state)
    state = {"params": model.params, "loss_state": loss_state, "opt_state": {"mu": jnp.ones(3)}}
    run_directory(tmp_path / "run", model, run, state)
    back = moejax.load(tmp_path / "run", step=7)
    assert_same_params(back.params, model.params)
    assert (back.cfg, back.context) == (run.model, run.train.seq_len)
    assert back.sides[0][0].prefer_BE.tolist() == [[[2.0] * 8]] * 2


def test_load_says_what_it_expected(model, tmp_path):
    with pytest.raises(UsageError, match=r"there is no file or directory .*, and it is no name such as"):
        moejax.load(tmp_path / "none")
    with pytest.raises(UsageError, match=r"has no config\.json, so it holds no model; give the directory"):
        moejax.load(tmp_path)
    run_directory(tmp_path / "young", model, base.tiny())
    with pytest.raises(CheckpointError, match="no checkpoint in the directory yet"):
        moejax.load(tmp_path / "young")
    (tmp_path / "young" / "config.json").write_text('{"model": "mixtral"}')
    with pytest.raises(UsageError, match=r"is no config\.json of a run"):
        moejax.load(tmp_path / "young")


def test_load_refuses_damage_and_another_model(model, tmp_path):
    wider = dataclasses.replace(base.tiny(), model=dataclasses.replace(model.cfg, vocab=300))
    run_directory(tmp_path / "other", model, wider, {"params": model.params, "loss_state": ((), (), ())})
    with pytest.raises(CheckpointError, match="another model"):
        moejax.load(tmp_path / "other")
    moejax.save(model, tmp_path / "saved")
    largest = max((p for p in (tmp_path / "saved").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        moejax.load(tmp_path / "saved")


@dataclasses.dataclass(frozen=True)
class MyRouter(Scorer):
    """A strategy that moejax does not know."""

    k: int = 2


def test_load_resolves_only_known_strategies(model, tmp_path):
    moejax.save(model, tmp_path / "own")
    file = tmp_path / "own" / "config.json"
    whole = json.loads(file.read_text())
    whole["config"]["model"]["groups"][0]["blocks"][0]["ffn"]["scorer"] = {"type": "MyRouter", "k": 3}
    file.write_text(json.dumps(whole))
    with pytest.raises(UsageError, match=r"'MyRouter', which is not among the known ones.*Linear"):
        moejax.load(tmp_path / "own")
    loaded = moejax.load(tmp_path / "own", strategies=[MyRouter])
    assert loaded.cfg.groups[0].blocks[0].ffn.scorer == MyRouter(k=3)
