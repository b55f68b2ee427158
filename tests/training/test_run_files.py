"""What may change when a run goes on, and how a refusal names it."""

import dataclasses
import pathlib

import pytest

from configs import base
from moejax import overrides
from moejax.errors import CheckpointError, DataError, MoejaxError
from moejax.records import to_dict
from moejax.training import run_files

HERE = pathlib.Path("runs/mine")


def refusal(**texts) -> str:
    """What is said of a run of `base.tiny` that goes on with other settings."""
    old = base.tiny()
    try:
        run_files.check_config(to_dict(old), to_dict(overrides.apply(old, texts)), HERE)
    except CheckpointError as error:
        return str(error)
    return ""


def test_what_makes_no_other_run():
    free = {"train.steps": "7", "train.optim.b1": "0.8", "model.scan": "false", "model.remat": "full"}
    assert refusal(**free) == ""


def test_what_makes_another_run_is_named_as_it_is_typed():
    told = refusal(
        **{"train.seed": "3", "model.groups[0].blocks[0].attn.num_heads": "8", "model.remat": "full"}
    )
    heads = base.tiny().model.groups[0].blocks[0].attn.num_heads
    assert told.splitlines()[1:3] == [
        f"  config.model.groups[0].blocks[0].attn.num_heads was {heads}, is now 8",
        "  config.train.seed was 0, is now 3",
    ]


def test_another_strategy_is_named_by_its_class():
    @dataclasses.dataclass(frozen=True)
    class Other:
        def check_mesh(self, mesh):
            pass

    old = base.tiny()
    (group, *_) = old.model.groups
    block = dataclasses.replace(group.blocks[0], ffn=Other())
    model = dataclasses.replace(old.model, groups=(dataclasses.replace(group, blocks=(block,)),))
    with pytest.raises(CheckpointError) as refused:
        run_files.check_config(to_dict(old), to_dict(dataclasses.replace(old, model=model)), HERE)
    kind = to_dict(old)["model"]["groups"][0]["blocks"][0]["ffn"]["type"]
    assert f"config.model.groups[0].blocks[0].ffn was {kind}, is now Other" in str(refused.value)


def test_a_damaged_config_is_no_new_run(tmp_path):
    (tmp_path / "config.json").write_text('{"config": ')
    with pytest.raises(CheckpointError, match="cannot be read"):
        run_files.check(tmp_path, overrides.resolve(base.tiny(), "test", {}), corpus=None)


class Second:
    """A process that hears `code` from the first one."""

    is_first = False

    def __init__(self, code: int):
        self._code = code

    def from_first(self, value: int) -> int:
        return self._code


@pytest.mark.parametrize("code, kind", [(66, CheckpointError), (65, DataError), (70, MoejaxError)])
def test_other_processes_end_like_the_first(monkeypatch, code, kind):
    monkeypatch.setattr(run_files, "Peers", lambda: Second(code))
    with pytest.raises(kind, match="the first process refused this run"):
        run_files.first_decides(lambda: pytest.fail("only the first process acts"))
    monkeypatch.setattr(run_files, "Peers", lambda: Second(0))
    run_files.first_decides(lambda: pytest.fail("only the first process acts"))
