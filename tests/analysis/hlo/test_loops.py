"""Trip counts of loops that XLA did not annotate."""

import jax
import jax.numpy as jnp
import pytest

from moejax.analysis.flops import count


def loop(start, stop, step, direction="LT"):
    return f"""HloModule m

%body (s: (s32[], f32[10])) -> (s32[], f32[10]) {{
  %s = (s32[], f32[10]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[10] get-tuple-element(%s), index=1
  %step = s32[] constant({step})
  %copy = s32[] copy(%i)
  %next = s32[] add(%copy, %step)
  %y = f32[10] sine(%x)
  ROOT %t = (s32[], f32[10]) tuple(%next, %y)
}}

%condition (s: (s32[], f32[10])) -> pred[] {{
  %s = (s32[], f32[10]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %stop = s32[] constant({stop})
  ROOT %c = pred[] compare(%i, %stop), direction={direction}
}}

ENTRY %main (x: f32[10]) -> (s32[], f32[10]) {{
  %x = f32[10] parameter(0)
  %start = s32[] constant({start})
  %t = (s32[], f32[10]) tuple(%start, %x)
  ROOT %w = (s32[], f32[10]) while(%t), condition=%condition, body=%body
}}
"""


@pytest.mark.parametrize(
    ("start", "stop", "step"), [(0, 5, 1), (2, 5, 1), (0, 5, 2), (-3, 3, 4), (5, 5, 1), (9, 5, 1)]
)
def test_a_counter_against_a_constant(start, stop, step):
    cost = count(loop(start, stop, step))
    assert cost.flops == 10 * len(range(start, stop, step))
    assert cost.unknown_loops == ()


@pytest.mark.parametrize("text", [loop(0, 5, 1, "NE"), loop(0, 5, 0), loop(0, 5, -1)])
def test_other_loops_are_unknown(text):
    assert count(text, dynamic_trips=4).flops == 40
    assert count(text).unknown_loops == ("w",)


def test_without_its_annotation_a_scan_is_still_counted():
    def power(x_DD):
        return jax.lax.scan(lambda y_DD, _: (jnp.sin(y_DD @ x_DD), None), x_DD, None, length=6)[0]

    text = jax.jit(power).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile().as_text()
    bare = text.replace("known_trip_count", "forgotten")
    assert text != bare
    assert count(bare).flops == count(text).flops == 6 * (2 * 8**3 + 64)
