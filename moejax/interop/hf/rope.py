"""Rotary positions in a config.json: `rope_parameters`, or `rope_theta` and `rope_scaling` in older files."""

import math
from typing import Any

from moejax.config import require
from moejax.interop.hf.fields import REQUIRED, Fields
from moejax.ops import rope


def read(fields: Fields, theta: Any = REQUIRED) -> dict[str, Any]:
    """Arguments `rope_theta` and `rope_scaling` of an attention.

    Args:
      theta: for a file that says nothing.

    Raises:
      UsageError: the positions are of a kind that is not known here.
    """
    theta = fields.take("rope_theta", float, theta if "rope_parameters" not in fields else 0.0)
    parameters, scaling = parts(fields)
    part = parameters or scaling or Fields({}, fields.where)
    found = read_part(part, theta or REQUIRED, fields)
    part.done()
    return found


def parts(fields: Fields) -> tuple[Fields | None, Fields | None]:
    """`rope_parameters` and `rope_scaling`, of which a file has one at most.

    Raises:
      UsageError: it has both.
    """
    both = "rope_parameters" in fields and "rope_scaling" in fields
    require(not both, f"{fields.where} has rope_parameters and rope_scaling, its older name; remove one")
    return fields.part("rope_parameters"), fields.part("rope_scaling")


def read_part(part: Fields, theta: Any, fields: Fields) -> dict[str, Any]:
    """As `read`, of the `part` of the `fields` that holds one set of positions."""
    part.take("type", str, None)
    scaling = part.choose(
        "rope_type" if "rope_type" in part else "type", READERS, "default"
    )  # its older name
    part.fixed("partial_rotary_factor", 1.0)
    return {"rope_theta": part.take("rope_theta", float, theta), "rope_scaling": scaling(part, fields)}


def write(theta: float | None, scaling: Any) -> dict[str, Any]:
    """`rope_parameters` of an attention.

    Raises:
      UsageError: it knows no positions.
    """
    require(theta is not None, "attn.rope_theta is None; queries and keys of this family turn in every layer")
    found = {"rope_theta": theta, "rope_type": "default"}
    if isinstance(scaling, rope.Interpolation):
        found |= {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, rope.Llama3):
        found |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original,
            "low_freq_factor": scaling.slow,
            "high_freq_factor": scaling.fast,
        }
    elif isinstance(scaling, rope.Yarn):
        found |= {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original,
            "beta_fast": scaling.fast,
            "beta_slow": scaling.slow,
            "truncate": scaling.truncate,
            "attention_factor": scaling.attention_factor,
        }
    elif isinstance(scaling, rope.LongRope):
        found |= {
            "rope_type": "longrope",
            "short_factor": list(scaling.short),
            "long_factor": list(scaling.long),
            "original_max_position_embeddings": scaling.original,
            "attention_factor": scaling.long_gain,
        }
    return {name: value for name, value in found.items() if value is not None}


def _linear(part: Fields, fields: Fields):
    return rope.Interpolation(part.take("factor", float))


def _llama3(part: Fields, fields: Fields):
    return rope.Llama3(
        factor=part.take("factor", float),
        original=part.take("original_max_position_embeddings", int),
        slow=part.take("low_freq_factor", float),
        fast=part.take("high_freq_factor", float),
    )


def _yarn(part: Fields, fields: Fields):
    original = part.take("original_max_position_embeddings", int, None) or fields.context
    factor = part.take("factor", float, None) or fields.context / original
    slopes = [part.take(name, float, None) for name in ("mscale", "mscale_all_dim")]
    gain = part.take("attention_factor", float, None)
    if gain is None and all(slopes):
        gain = rope.long_text_gain(factor, slopes[0]) / rope.long_text_gain(factor, slopes[1])
    return rope.Yarn(
        factor=factor,
        original=original,
        fast=part.take("beta_fast", float, 32.0),
        slow=part.take("beta_slow", float, 1.0),
        truncate=part.take("truncate", bool, True),
        attention_factor=gain,
    )


def _longrope(part: Fields, fields: Fields):
    inner, outer = (each.take("original_max_position_embeddings", int, None) for each in (part, fields))
    original = inner or outer or fields.context
    factor, gain = part.take("factor", float, None), part.take("attention_factor", float, None)
    gains = [part.take(f"{texts}_mscale", float, gain) for texts in ("short", "long")]
    if None in gains:
        factor = factor or fields.context / original
        usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        gains = [gain or usual for gain in gains]
    short, long = (tuple(part.take(name, list)) for name in ("short_factor", "long_factor"))
    return rope.LongRope(short, long, original, *gains)


READERS = {
    "default": lambda part, fields: None,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
