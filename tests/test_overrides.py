"""Overrides, their sources, and config.json, on a small tree whose every value is in sight."""

import dataclasses
import json
from typing import Any

import pytest

from moejax import overrides, records
from moejax.config import require
from moejax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class TopK:
    k: int = 2
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Plain:
    """A strategy without settings."""


@dataclasses.dataclass(frozen=True)
class Layer:
    selector: Any
    repeat: int = 1


@dataclasses.dataclass(frozen=True)
class Batch:
    rows: int = 8
    parts: int = 1
    source: tuple[str, ...] = ()
    window: int | None = None

    def __post_init__(self):
        if self.rows % self.parts:
            raise UsageError(f"rows={self.rows} is not divisible by parts={self.parts}")


@dataclasses.dataclass(frozen=True)
class Root:
    name: str
    layers: tuple[Layer, ...]
    batch: Batch = Batch()
    tied: bool = True


CFG = Root("root", (Layer(TopK()), Layer(Plain(), repeat=3)))
KNOWN = (Root, Layer, Batch, TopK, Plain)


def test_flatten_by_hand():
    assert overrides.flatten(CFG) == {
        "name": "root",
        "layers[0].selector": "TopK",
        "layers[0].selector.k": 2,
        "layers[0].selector.scale": 1.0,
        "layers[0].repeat": 1,
        "layers[1].selector": "Plain",
        "layers[1].repeat": 3,
        "batch.rows": 8,
        "batch.parts": 1,
        "batch.source": (),
        "batch.window": None,
        "tied": True,
    }


@pytest.mark.parametrize(
    "path, text, read",
    [
        ("layers[0].selector.k", "4", lambda cfg: cfg.layers[0].selector.k == 4),
        ("layers[1].repeat", "2", lambda cfg: cfg.layers[1].repeat == 2),
        ("layers[0].selector.scale", "2", lambda cfg: cfg.layers[0].selector.scale == 2.0),
        ("batch.window", "16", lambda cfg: cfg.batch.window == 16),
        ("batch.source", "a,b", lambda cfg: cfg.batch.source == ("a", "b")),
        ("tied", "false", lambda cfg: cfg.tied is False),
        ("name", "other", lambda cfg: cfg.name == "other"),
    ],
)
def test_override_changes_one_setting(path, text, read):
    changed = overrides.override(CFG, path, text)
    assert read(changed)
    assert [change.path for change in overrides.diff(CFG, changed)] == [path]


def test_settings_that_depend_on_each_other_change_together():
    changed = overrides.apply(CFG, {"batch.rows": "9", "batch.parts": "3"})
    assert (changed.batch.rows, changed.batch.parts) == (9, 3)
    with pytest.raises(UsageError, match="rows=8 is not divisible by parts=3"):
        overrides.override(CFG, "batch.parts", "3")


@pytest.mark.parametrize(
    "path, text, message",
    [
        ("batch.row", "4", "config.batch.row does not exist; did you mean rows?"),
        ("batch.row", "4", "keys of config.batch (Batch): rows, parts, source, window"),
        ("repeat", "4", "did you mean config.layers[0].repeat?"),
        ("zzz", "4", "keys of config (Root): name, layers, batch, tied"),
        ("batch.rows", "many", "config.batch.rows='many' is not a whole number; it is now 8"),
        ("batch.rows", "4.5", "--config.batch.rows=8"),
        ("tied", "maybe", "is not true or false"),
        ("layers[0].selector.scale", "x", "is not a number"),
        ("batch.window", "x", "is not a whole number or none"),
        ("batch", "4", "this is a Batch, not a plain value; set one of its keys (rows, parts"),
        ("layers", "4", "this is a tuple of 2 records"),
        ("layers[1].selector", "TopK", "set one of its keys (none), or choose another one in a recipe"),
        ("layers[2].repeat", "4", "config.layers has 2 entries"),
        ("layers.repeat", "4", "config.layers is a tuple; write config.layers[0]"),
        ("layers[1].selector.k", "4", "is a Plain, which has no settings"),
        ("batch[0]", "4", "is one Batch, not a tuple"),
        ("batch.rows.x", "4", "config.batch.rows is a plain value, '8'"),
        ("batch..rows", "4", "is not a path"),
        ("", "4", "is not a path"),
    ],
)
def test_refused_with_a_way_out(path, text, message):
    with pytest.raises(UsageError) as caught:
        overrides.override(CFG, path, text)
    assert message in str(caught.value)


@pytest.mark.parametrize("first, second", [("batch", "batch.rows"), ("batch.rows", "batch")])
def test_a_record_and_its_setting_cannot_both_be_set(first, second):
    with pytest.raises(UsageError, match="both set"):
        overrides.apply(CFG, {first: "1", second: "2"})


def test_an_error_of_a_strategy_names_the_flag():
    @dataclasses.dataclass(frozen=True)
    class Picky:
        half: int = 2

        def __post_init__(self):
            1 / self.half

    with pytest.raises(UsageError, match=r"config\.layers\[0\]\.selector\.half: division by zero"):
        overrides.override(dataclasses.replace(CFG, layers=(Layer(Picky()),)), "layers[0].selector.half", "0")


def test_a_refusal_of_a_record_says_where_it_is():
    """A record knows no path to it or to its strategies; a path that it does know is not repeated."""

    @dataclasses.dataclass(frozen=True)
    class Even:
        half: int = 2
        word: str = "selector.half"

        def __post_init__(self):
            require(self.half % 2 == 0, f"{self.word}={self.half} must be even")

    def refusal(word):
        cfg = dataclasses.replace(CFG, layers=(Layer(Even(word=word)),))
        with pytest.raises(UsageError) as caught:
            overrides.override(cfg, "layers[0].selector.half", "3")
        return str(caught.value)

    assert refusal("selector.half") == "config.layers[0].selector: selector.half=3 must be even"
    assert refusal("layers[0].selector.half") == "layers[0].selector.half=3 must be even"


def test_sources():
    sources = overrides.resolve(CFG, "recipe.py", {"batch.rows": "4", "layers[0].selector.k": "1"}).sources
    assert sources["name"] == sources["layers[1].repeat"] == "recipe.py"
    assert sources["batch.rows"] == sources["layers[0].selector.k"] == "command line"
    assert sources["batch.parts"] == sources["layers[0].repeat"] == "default"
    assert list(sources) == list(overrides.flatten(CFG))


def test_the_source_of_one_entry_is_the_source_of_its_tuple():
    cfg = overrides.override(CFG, "batch.source", "a,b")
    resolved = overrides.resolve(cfg, "recipe.py", {"batch.source[1]": "c"})
    assert resolved.config.batch.source == ("a", "c")
    assert resolved.sources["batch.source"] == "command line"


def test_table_shows_value_and_source():
    lines = overrides.table(overrides.resolve(CFG, "recipe.py", {"batch.rows": "4"})).splitlines()
    assert len(lines) == len(overrides.flatten(CFG))
    assert [line.split(maxsplit=2) for line in lines if "rows" in line] == [
        ["batch.rows", "4", "command line"]
    ]


def test_a_recipe_with_a_wrong_type_is_refused():
    with pytest.raises(UsageError, match=r"config\.layers\[0\]\.repeat is '2'; expected a whole number"):
        overrides.resolve(Root("x", (Layer(TopK(), repeat="2"),)), "recipe.py", {})
    with pytest.raises(UsageError, match=r"config\.layers\[0\]\.selector is \{'k': 2\}; a setting is"):
        overrides.resolve(Root("x", (Layer({"k": 2}),)), "recipe.py", {})


def test_json_round_trip():
    resolved = overrides.resolve(CFG, "recipe.py", {"batch.source": "a,b", "layers[0].selector.scale": "2"})
    again = overrides.loads(overrides.dumps(resolved), KNOWN)
    assert again == resolved
    assert records.fingerprint(again.config) == records.fingerprint(resolved.config)
    assert records.fingerprint(CFG) != records.fingerprint(resolved.config)


def test_overrides_on_top_of_a_replay_keep_the_other_sources():
    first = overrides.resolve(CFG, "recipe.py", {"batch.rows": "4"})
    second = overrides.reapply(overrides.loads(overrides.dumps(first), KNOWN), {"tied": "false"})
    assert second.sources["batch.rows"] == second.sources["tied"] == "command line"
    assert second.sources["name"] == "recipe.py"


def edited(**changes) -> dict:
    return json.loads(json.dumps(records.to_dict(CFG))) | changes


@pytest.mark.parametrize(
    "data, message",
    [
        (edited(type="Rot"), "'Rot', which is not among the known ones; did you mean Root?: Batch, Layer"),
        (edited(type="os.system"), "not among the known ones"),
        (edited(batch={"rows": 4}), "config.batch is of type None"),
        (edited(batch={"type": "TopK"}), "config.batch is a TopK; expected Batch"),
        (edited(batch={"type": "Batch", "rowz": 4}), "has no setting 'rowz'; did you mean rows?"),
        (edited(batch={"type": "Batch", "rows": "4"}), "config.batch.rows is '4'; expected a whole number"),
        (edited(batch={"type": "Batch", "rows": True}), "config.batch.rows is True"),
        (edited(batch={"type": "Batch", "rows": 9, "parts": 2}), "rows=9 is not divisible by parts=2"),
        (edited(tied=[1]), "config.tied is (1,)"),
        ({"type": "Root"}, "missing 2 required positional arguments"),
    ],
)
def test_damaged_json_is_refused(data, message):
    with pytest.raises(UsageError) as caught:
        records.from_dict(data, KNOWN)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"config": 1}', "[" * 100_000])
def test_text_that_is_no_config(text):
    with pytest.raises(UsageError, match=r"no config\.json"):
        overrides.loads(text, KNOWN)


def test_two_classes_of_one_name():
    other = dataclasses.make_dataclass("TopK", [("k", int, 1)], frozen=True)
    with pytest.raises(UsageError, match="two config classes are called 'TopK'"):
        records.from_dict(records.to_dict(CFG), (*KNOWN, other))


def test_a_class_may_choose_its_stored_name():
    @dataclasses.dataclass(frozen=True)
    class Renamed:
        k: int = 1
        name = "old_name"

    cfg = Layer(Renamed(k=5))
    assert records.to_dict(cfg)["selector"] == {"type": "old_name", "k": 5}
    assert records.from_dict(records.to_dict(cfg), (Layer, Renamed)) == cfg


def test_diff_sees_types_and_strategies():
    other = dataclasses.replace(CFG, layers=(Layer(Plain()), CFG.layers[1]))
    assert overrides.diff(CFG, other) == [
        ("layers[0].selector", "TopK", "Plain"),
        ("layers[0].selector.k", 2, overrides.ABSENT),
        ("layers[0].selector.scale", 1.0, overrides.ABSENT),
    ]
    assert overrides.diff(CFG, dataclasses.replace(CFG, tied=1)) == [("tied", True, 1)]
    assert overrides.diff(CFG, CFG) == []
