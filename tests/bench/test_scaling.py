"""The scaling benchmark: what programs move against closed forms, rows that replace rows, and pages."""

import json
import pathlib

import numpy as np
import pytest

from moejax import specs as sp
from moejax.bench import __main__ as door
from moejax.bench import scaling, scaling_compiled, scaling_measured, scaling_page
from moejax.bench.report import Measure
from moejax.bench.scaling_rows import FAILURES, Row
from moejax.config import MeshConfig
from moejax.dispatch.cells import FixedCell
from moejax.dispatch.load import Load
from moejax.errors import UsageError
from moejax.training import program
from moejax.training.data.packing import pack
from tests.pallas_kernels.topologies import needs_libtpu

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / scaling.JSON
SCALARS = 1024  # bytes of sums that losses and metrics need, at most


@pytest.fixture(scope="module")
def ran():
    """All of the measured part in small, on words that mean nothing."""
    cfg = scaling_measured.tiny()
    words = np.random.default_rng(0).integers(0, 256, 400, dtype=np.int32)
    return scaling_measured.rows(cfg, pack([words], cfg.seq_len, bos=256, eos=257))


def values(rows: list[Row], name: str) -> dict[str, float]:
    row = next(row for row in rows if row.name == name)
    return {measure.name.partition(": ")[2]: measure.value for measure in row.measures}


def bytes_of(tree) -> int:
    return 4 * sp.count(tree)


def stored() -> dict:
    """Specs of the model of the small measured part."""
    return program.build(scaling_measured.recipe(scaling_measured.tiny(), 4, MeshConfig())).specs


def test_data_parallelism_sums_every_gradient(ran):
    """Once, and of the table that embeds and unembeds twice: what each use gives is summed by itself."""
    tree = stored()
    summed = values(ran, "measured data, 2 devices, 4 rows")["all-reduce per device"]
    gradients = bytes_of(tree) + bytes_of(tree["embed"])
    assert gradients < summed < gradients + SCALARS


def test_expert_parallelism_exchanges_rows_and_keeps_gradients(ran):
    """Cells travel there and back, forward and backward; what a device holds alone is summed by nobody."""
    tree, moved = stored(), values(ran, "measured expert, 2 devices, 4 rows")
    load = Load(devices=2, tokens=2 * 16, slots=2, experts=16, width=32)
    assert moved["all-to-all per device"] == 4 * (16 * 2 * int(1.25 * 2) * 32 * 4) + 16 * 4
    assert moved["all-to-all per device"] == FixedCell(1.25).collective_bytes(load, 2)["all-to-all"]
    experts = bytes_of(tree["group0"]["block0"]["ffn"]["experts"])
    gradients = bytes_of(tree) + bytes_of(tree["embed"]) - experts
    assert gradients < moved["all-reduce per device"] < gradients + SCALARS


def test_devices_share_the_work(ran):
    one, two = (values(ran, f"measured {name}, 4 rows") for name in ("one, 1 devices", "data, 2 devices"))
    assert one["FLOPs per device"] / 2 < two["FLOPs per device"] < one["FLOPs per device"]
    assert two["time / that of one device"] > 0 and "time / that of one device" not in one


def test_cases_by_hand():
    """Rows of the most devices are those of strong scaling; every number of rows runs on one device too."""
    found = [
        (case.layout, case.devices, case.rows) for case in scaling_measured.cases(scaling_measured.tiny())
    ]
    assert found == [
        ("one", 1, 4), ("one", 1, 2), ("data", 2, 4), ("expert", 2, 4),
    ]  # fmt: skip
    rows = {case.rows for case in scaling_measured.cases(scaling_measured.Settings())}
    assert rows == {2, 4, 8, 16}


def made_up(name: str, **figures: float) -> Row:
    return Row(
        name, tuple(Measure(f"{name}: {figure}", value, "", "lower") for figure, value in figures.items())
    )


def compiled_row(topology: str, memory: float) -> Row:
    figures = {"memory per chip": memory, "FLOPs per chip": 2e12, "all-to-all per chip": 3e9}
    figures |= {f"roofline, {part}": 0.5 for part in ("products", "memory", "links")}
    return made_up(f"compiled {topology}", **figures)


def test_rows_replace_rows_and_parts_stay(tmp_path):
    measured = made_up(
        "measured one, 1 devices, 16 rows", **{"FLOPs per device": 8e6, "seconds per step": 1.0}
    )
    report = scaling.merged(None, [measured], {"measured": {"model": "a"}})
    report = scaling.merged(report, [compiled_row("v5e:8x8", 2**30)], {"compiled": {"model": "b"}})
    failed = Row("compiled v5e:4x4", (), "no room")
    report = scaling.merged(report, [failed], {"compiled": {"model": "b"}})
    report = scaling.merged(report, [compiled_row("v5e:8x8", 2**31)], {"compiled": {"model": "b"}})
    scaling.write(report, tmp_path / "a.json")
    assert scaling.read(str(tmp_path / "a.json")) == report
    memory = [
        measure.value for measure in report.measures if measure.name == "compiled v5e:8x8: memory per chip"
    ]
    assert memory == [2**31] and report.settings[FAILURES] == {"compiled v5e:4x4": "no room"}
    table = scaling_page.tables(report)
    assert "| v5e:4x4 | 16 | no room |" in table and "| v5e:8x8 | 64 | 2 | 2 |" in table
    other = scaling.merged(report, [compiled_row("v5p:8x8x8", 2**30)], {"compiled": {"model": "c"}})
    names = {measure.name.partition(": ")[0] for measure in other.measures}
    assert (
        names == {"measured one, 1 devices, 16 rows", "compiled v5p:8x8x8"} and not other.settings[FAILURES]
    )


def test_work_is_shared_by_hand():
    """8 devices that compute a tenth of what one does: 1 / (8 * 0.1)."""
    rows = [
        made_up("measured one, 1 devices, 16 rows", **{"FLOPs per device": 10.0}),
        made_up("measured data, 8 devices, 16 rows", **{"FLOPs per device": 1.0}),
    ]
    (work,) = (m for m in scaling.merged(None, rows, {}).measures if m.name.startswith("work"))
    assert work.name == scaling.BAR[0].measure and work.value == 1.25


def test_tables_need_their_place():
    marked = f"a\n{scaling_page.BEGIN}\nold\n{scaling_page.END}\nb\n"
    assert scaling_page.into(marked, "new\n") == marked.replace("old", "new")
    with pytest.raises(UsageError, match="no place for the tables"):
        scaling_page.into("a\nb\n", "new\n")


@pytest.mark.parametrize(
    "name, fsdp, expert", [("v5e:16x16", 16, 16), ("v5p:8x8x8", 64, 8), ("v6e:8x8", 8, 8)]
)
def test_experts_take_whole_dimensions(name, fsdp, expert):
    (one,) = scaling_compiled.slices(name)
    assert one.mesh == MeshConfig(fsdp=fsdp, expert=expert)


def test_slices():
    (one,) = scaling_compiled.slices("v5p:4x4x4")
    assert (one.chips, one.mesh) == (64, MeshConfig(fsdp=4, expert=16)) and one.chip.memory == 95 * 2**30


def test_pages_are_made_of_the_report():
    report = scaling.read(str(RESULT))
    assert (ROOT / scaling.PAGE).read_text(encoding="utf-8") == scaling_page.page(report)
    readme = (ROOT / scaling.README).read_text(encoding="utf-8")
    assert scaling_page.into(readme, scaling_page.tables(report)) == readme


@needs_libtpu
@pytest.mark.nightly
def test_a_step_is_compiled_for_chips_that_are_not_here():
    (row,) = scaling_compiled.rows(scaling_compiled.slices("v5e:2x2"), scaling_compiled.tiny)
    found = values([row], "compiled v5e:2x2")
    assert 1e6 < found["memory per chip"] < 1e9
    # a row of 256 tokens per chip; C = K int(f N / E) = 2 int(1.25 * 32) slots of 256 bfloat16, 2 layers
    cells = 8 * 80 * 256 * 2
    assert 2 * 4 * cells <= found["all-to-all per chip"] <= 2 * 4 * cells + SCALARS


@needs_libtpu
def test_a_slice_that_does_not_exist_is_a_row():
    (row,) = scaling_compiled.rows(scaling_compiled.slices("v5e:3x5"), scaling_compiled.tiny)
    assert row.failure and not row.measures


@pytest.mark.nightly
def test_through_the_door(tmp_path):
    path = tmp_path / "scaling.json"
    assert door.main(["scaling", "--size=tiny", "--part=measured", f"--json={path}"]) == 0
    report = json.loads(path.read_text())
    assert np.isfinite([measure["value"] for measure in report["measures"]]).all()
    assert report["verdict"] == "inconclusive"  # only some of its bars were measured
