"""Programs as other backends print them, which this machine cannot compile."""

import pytest

from moejax.analysis.hlo.parse import Shape, parse

TPU = """HloModule jit_f, entry_computation_layout={()->s4[8]{0}}, replica_count=2, num_partitions=4

%fused.1 (p.0: bf16[8,128]) -> bf16[8,128] {
  %p.0 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %neg = bf16[8,128]{1,0:T(8,128)(2,1)} negate(%p.0), metadata={op_name="f/layer (a)/neg"}
}, execution_thread="main"

ENTRY %main.2_spmd (x: bf16[8,128]) -> (bf16[8,128], (s4[3], pred[])) {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="x"}
  %c.1 = f32[2]{0} constant({1, -2.5})
  %s = (s32[], /*index=1*/(s4[3]{0}, pred[])) custom-call(bf16[8,128]{1,0} %x), custom_call_target="a(b"
  ROOT %fusion.3 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%x), kind=kLoop, calls=%fused.1
}
"""


def test_tpu_text():
    module = parse(TPU)
    assert module.devices == 8
    assert list(module.computations) == ["fused.1", "main.2_spmd"]
    assert module.entry.name == "main.2_spmd"
    fusion = module.entry.root
    assert (fusion.name, fusion.opcode, fusion.operands) == ("fusion.3", "fusion", ("x",))
    assert fusion.shapes == (Shape("bf16", (8, 128)),)
    assert fusion.bytes == 2048
    assert fusion.called("calls") == ("fused.1",)
    inside = module.computations["fused.1"]
    assert inside.parameter(0).name == "p.0"
    assert inside.root.op_name == "f/layer (a)/neg"


def test_tuples_are_flattened_and_operands_may_carry_types():
    op = parse(TPU).entry.ops["s"]
    assert op.shapes == (Shape("s32", ()), Shape("s4", (3,)), Shape("pred", ()))
    assert op.bytes == 4 + 2 + 1
    assert op.operands == ("x",)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("f32", 40), ("bf16", 20), ("f8e4m3fn", 10), ("pred", 10), ("s4", 5), ("c64", 80), ("token", 0)],
)
def test_bytes_of_ten_elements(dtype, size):
    assert Shape(dtype, (5, 2)).bytes == size


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("jaxpr")
