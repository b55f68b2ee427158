"""F25: whatever a config.json says, it is a model or it is refused in words; no other error, no time lost."""

import itertools
import logging

import pytest

from moejax.errors import MoejaxError
from moejax.interop.hf import directory
from moejax.interop.hf.families import families
from moejax.model import forward as decoder
from tests.interop import parity
from tests.interop.hf import test_blockffn, test_openmoe, test_smallthinker

NOT_IN_TRANSFORMERS = {
    "minicpm": test_blockffn.GROUPED,
    "openmoe": test_openmoe.BASE,
    "smallthinker": test_smallthinker.SMALL,
}
FEW = (None, -1, 0, 7, 2**62, 1e30, "x", [0], {"rope_type": "yarn", "factor": 0.0})
MANY = (1, 3, 2**31, -0.5, 0.0, "", [], [1], [0, -1], ["x"], {}, {"a": 1}, True, False)
ROPES = ({"rope_type": "llama3"}, {"type": "linear", "factor": "x"}, {"rope_type": "yarn", "rope_theta": -1})


def released(model_type: str) -> dict:
    """A config.json as people find it."""
    if model_type in NOT_IN_TRANSFORMERS:
        return dict(NOT_IN_TRANSFORMERS[model_type])
    _, transformers = parity.libraries()
    config = transformers.AutoConfig.for_model(model_type).to_dict()
    return config if config.get("num_experts_per_tok", 0) is not None else config | {"num_experts_per_tok": 2}


def read(config: dict) -> None:
    """All that is made of a config before a file is opened."""
    described = directory.describe(config, "config.json")
    m = described.model
    list(itertools.islice(described.family.tensor_map(m).places(m, decoder.specs(m)), 100))


@pytest.mark.parametrize("values", [FEW, pytest.param((*MANY, *ROPES), marks=pytest.mark.nightly)])
@pytest.mark.parametrize("model_type", families())
def test_any_value_of_any_field(model_type, values, caplog):
    caplog.set_level(logging.ERROR)
    config = released(model_type)
    read(config)
    found = []
    for field, value in itertools.product(config, values):
        try:
            read({**config, field: value})
        except MoejaxError:
            continue
        except Exception as error:
            found.append(f"{field}={value!r}: {type(error).__name__}: {error}")
    assert not found, "\n".join(found)
