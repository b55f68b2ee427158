"""The bytes that formulas predict are those of the compiled programs, and the page shows them."""

import pathlib

import pytest

from moejax.bench import collectives
from moejax.dispatch.all_to_all import RaggedAllToAll
from moejax.dispatch.cells import FixedCell
from moejax.dispatch.load import Load
from moejax.dispatch.local import Local

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs/collectives.md"
ODD = Load(devices=4, tokens=9, slots=3, experts=8, width=5)


def predicted_as_counted(row):
    assert row.counted == {kind: n for kind, n in row.predicted.items() if n}, row


def test_cells_by_hand():
    """16 experts have 2 int(1.25 * 4) = 10 slots each, of 32 numbers; there and back, and 16 counts."""
    moved = FixedCell(capacity_factor=1.25).collective_bytes(collectives.LOAD)
    assert moved == {"all-to-all": 2 * 16 * 10 * 32 * 4 + 16 * 4}


def test_rows_by_hand():
    """128 rows of 32 numbers, there and back; elsewhere than on CPU in messages as long as they are."""
    moved = RaggedAllToAll().collective_bytes(collectives.LOAD, platform="tpu")
    assert moved == {"all-gather": 8 * 16 * 4, "ragged-all-to-all": 2 * 128 * 32 * 4}


@pytest.mark.parametrize(
    "scheme", [Local(chunks=2), RaggedAllToAll(chunks=2), FixedCell(1.5, chunks=2, node_size=2)], ids=repr
)
def test_predicted_is_counted(scheme):
    """With chunks that are not equal, and cells of which the last is not full."""
    for row in collectives.rows([(scheme, ODD)]):
        predicted_as_counted(row)


@pytest.mark.nightly
def test_every_row_of_the_page_is_counted():
    for row in collectives.rows():
        predicted_as_counted(row)


def test_the_page_is_what_the_command_prints():
    """Of what is predicted, which the tests above hold equal to what is counted."""
    moved = [
        (scheme, n, scheme.collective_bytes(load, n)) for scheme, load in collectives.CASES for n in (1, 2)
    ]
    rows = [collectives.Row(scheme, n, found, found) for scheme, n, found in moved]
    assert collectives.table(rows) == PAGE.read_text(encoding="utf-8")
