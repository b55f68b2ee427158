"""What the program shows to its scores; utilities by hand are in test_expert_utility.py."""

import types

import numpy as np

from moejax.bench import calibration
from moejax.bench.domains import Domains
from moejax.bench.papers.premoe import first_tokens
from moejax.training.data.packing import Rows
from tests.contracts import tiny


def rows(first: int, count: int) -> Rows:
    """Rows whose tokens tell which row they are."""
    at_NT = np.tile(np.arange(first, first + count)[:, None], (1, 4))
    fields = Rows.__dataclass_fields__
    return Rows(**dict.fromkeys(fields, at_NT))


def test_calibration_takes_training_rows_of_each_domain():
    text = Domains(
        names=("a", "b"),
        tokenizer=types.SimpleNamespace(),
        train=rows(0, 10),
        train_label_N=np.repeat([0, 1], [6, 4]),
        held_out={"a": rows(50, 2), "b": rows(60, 2)},
        fingerprint="",
        own_text=True,
    )
    shown = calibration.of_training(text, 3).held_out
    assert shown["a"].target_NT[:, 0].tolist() == [0, 2, 4]
    assert shown["b"].target_NT[:, 0].tolist() == [6, 7, 8]


def test_a_short_prompt_is_the_beginning_of_a_row():
    batch = tiny.batch(0, rows=1, length=6, padded=1)
    assert first_tokens(batch, 3).valid_BT.tolist() == [[True, True, True, False, False, False]]
    assert first_tokens(batch, 64).valid_BT.tolist() == batch.valid_BT.tolist()
