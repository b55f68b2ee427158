"""Bytes of fusions, slices and split collectives, written as HLO text."""

import pytest

from moejax.analysis.flops import count
from moejax.analysis.hlo.parse import parse
from moejax.analysis.hlo.traffic import group_size


def program(inside, entry):
    header = "HloModule m, num_partitions=4\n\n%inside (p: f32[]) -> f32[] {"
    return "\n".join([header, *inside, "}", "", "ENTRY %main (a: f32[]) -> f32[] {", *entry, "}"])


def test_a_fusion_reads_its_operands_and_writes_its_result():
    inside = [
        "%p = f32[100] parameter(0)",
        "%e = f32[100] exponential(%p)",
        "%n = f32[100] negate(%e)",
        "ROOT %m = f32[100] multiply(%n, %e)",
    ]
    entry = ["%a = f32[100] parameter(0)", "ROOT %f = f32[100] fusion(%a), kind=kLoop, calls=%inside"]
    cost = count(program(inside, entry))
    assert (cost.flops, cost.bytes) == (300, 800)


def test_a_fused_slice_reads_what_it_slices_even_behind_a_view():
    inside = [
        "%p = f32[50,100] parameter(0)",
        "%i = s32[] parameter(1)",
        "%v = f32[50,10,10] bitcast(%p)",
        "%s = f32[1,10,10] dynamic-slice(%v, %i, %i, %i), dynamic_slice_sizes={1,10,10}",
        "ROOT %n = f32[1,10,10] negate(%s)",
    ]
    entry = [
        "%a = f32[50,100] parameter(0)",
        "%i = s32[] parameter(1)",
        "ROOT %f = f32[1,10,10] fusion(%a, %i), kind=kLoop, calls=%inside",
    ]
    assert count(program(inside, entry)).bytes == 400 + 4 + 400


def test_an_operand_that_is_sliced_and_used_whole_is_read_once():
    inside = [
        "%p = f32[8,100] parameter(0)",
        "%s = f32[1,100] slice(%p), slice={[0:1], [0:100]}",
        "%b = f32[8,100] broadcast(%s), dimensions={0,1}",
        "ROOT %m = f32[8,100] multiply(%p, %b)",
    ]
    entry = ["%a = f32[8,100] parameter(0)", "ROOT %f = f32[8,100] fusion(%a), kind=kLoop, calls=%inside"]
    assert count(program(inside, entry)).bytes == 2 * 3200


def test_a_fused_update_writes_what_it_updates():
    inside = [
        "%p = f32[50,100] parameter(0)",
        "%u = f32[1,100] parameter(1)",
        "%i = s32[] parameter(2)",
        "%n = f32[1,100] negate(%u)",
        "ROOT %d = f32[50,100] dynamic-update-slice(%p, %n, %i, %i)",
    ]
    entry = [
        "%a = f32[50,100] parameter(0)",
        "%u = f32[1,100] parameter(1)",
        "%i = s32[] parameter(2)",
        "ROOT %f = f32[50,100] fusion(%a, %u, %i), kind=kLoop, calls=%inside",
    ]
    assert count(program(inside, entry)).bytes == 400 + 4 + 400


def test_a_gather_and_a_scatter_touch_their_rows():
    """5 rows of 400 bytes and 5 indices of 4: read and written; the scatter also reads what it adds to."""
    inside = ["%p = f32[] parameter(0)", "%q = f32[] parameter(1)", "ROOT %s = f32[] add(%p, %q)"]
    entry = [
        "%a = f32[50,100] parameter(0)",
        "%i = s32[5,1] parameter(1)",
        "%g = f32[5,100] gather(%a, %i), offset_dims={1}, slice_sizes={1,100}",
        "ROOT %s = f32[50,100] scatter(%a, %i, %g), update_window_dims={1}, to_apply=%inside",
    ]
    cost = count(program(inside, entry))
    assert cost.bytes == (2 * 2000 + 20) + (3 * 2000 + 20)
    assert cost.flops == 500


def test_a_start_and_its_done_count_once():
    inside = ["%p = bf16[16] parameter(0)", "ROOT %r = bf16[4] reduce-scatter(%p), to_apply=%add"]
    entry = [
        "%a = bf16[16] parameter(0)",
        "%gs = (bf16[16], bf16[64]) all-gather-start(%a), dimensions={0}",
        "%gd = bf16[64] all-gather-done(%gs)",
        "%ps = (bf16[16], bf16[16], u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1}}",
        "%pd = bf16[16] collective-permute-done(%ps)",
        "%rs = ((bf16[16]), bf16[4]) async-start(%a), calls=%inside",
        "ROOT %rd = bf16[4] async-done(%rs)",
    ]
    assert count(program(inside, entry)).collective_bytes == {
        "all-gather": 128,
        "collective-permute": 32,
        "reduce-scatter": 32,
    }


def test_a_device_alone_in_its_group_sends_nothing():
    groups = ["{{0,1},{2,3}}", "[2,2]<=[4]", "{}", "mesh['a'=2,'b'=2] {'b'}", "mesh['a'=4] {'a':(1)2}"]
    groups += ["{{0},{1},{2},{3}}", "[4,1]<=[4]", "mesh['a'=1,'b'=4] {'a'}"]
    entry = ["%a = f32[16] parameter(0)"]
    entry += [
        f"%r{i} = f32[16] all-reduce(%a), replica_groups={text}, to_apply=%inside"
        for i, text in enumerate(groups)
    ]
    inside = ["%p = f32[] parameter(0)", "%q = f32[] parameter(1)", "ROOT %s = f32[] add(%p, %q)"]
    assert count(program(inside, entry)).collective_bytes == {"all-reduce": 5 * 64}


@pytest.mark.parametrize(
    "groups, devices",
    [
        ("{{0,4},{1,5},{2,6},{3,7}}", 2),
        ("[2,4]<=[8]", 4),
        ("mesh['a'=2,'b'=4] {'b'}, dimensions={0}", 4),
        ("mesh['a'=2,'b'=4], device_ids=([8]) {'a','b'}", 8),
        ("mesh['a'=8] {'a':(2)4}", 4),
        ("{}", None),
    ],
)
def test_devices_of_a_group(groups, devices):
    lines = ["%a = f32[16] parameter(0)", f"ROOT %r = f32[16] all-gather(%a), replica_groups={groups}"]
    assert group_size(parse(program(["ROOT %p = f32[] parameter(0)"], lines)).entry.root) == devices


def test_a_ragged_exchange_counts_its_rows_not_its_buffers():
    entry = [
        "%rows = f32[16,4] parameter(0)",
        "%buffer = f32[64,4] parameter(1)",
        "%at = s32[4] parameter(2)",
        "%there = f32[64,4] ragged-all-to-all(%rows, %buffer, %at, %at, %at, %at)",
        "ROOT %back = f32[16,4] ragged-all-to-all(%there, %rows, %at, %at, %at, %at)",
    ]
    unused = ["ROOT %p = f32[] parameter(0)"]
    assert count(program(unused, entry)).collective_bytes == {"ragged-all-to-all": 256 + 256}


def test_what_stays_on_the_chip_moves_for_free():
    """TPU programs prefetch into memory space 1: the copy reads main memory, the fusion nothing."""
    inside = ["%p = f32[100] parameter(0)", "ROOT %n = f32[100] negate(%p)"]
    entry = [
        "%a = f32[100]{0:T(128)} parameter(0)",
        "%cs = (f32[100]{0:T(128)S(1)}, f32[100]{0:T(128)}, u32[]{:S(2)}) copy-start(%a)",
        "%cd = f32[100]{0:T(128)S(1)} copy-done(%cs)",
        '%allotted = f32[100]{0:T(128)} custom-call(), custom_call_target="AllocateBuffer"',
        "ROOT %f = f32[100]{0:T(128)} fusion(%cd), kind=kLoop, calls=%inside",
    ]
    assert count(program(inside, entry)).bytes == 400 + 400


def test_an_asynchronous_slice_reads_what_it_slices():
    entry = [
        "%a = f32[8,100] parameter(0)",
        "%ss = ((f32[8,100]{1,0}), f32[1,100]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:1]}",
        "ROOT %sd = f32[1,100]{1,0:S(1)} slice-done(%ss)",
    ]
    assert count(program(["ROOT %p = f32[] parameter(0)"], entry)).bytes == 400


def test_a_collective_spread_over_fusions_counts_where_it_starts():
    """As the TPU compiler overlaps a gather with two fusions: the legs between repeat it and pass it on."""
    gather = '%g = f32[400] all-gather(%p), dimensions={0}, frontend_attributes={chain_id="0"}'
    start = 'ROOT %s = (f32[100], f32[400]) custom-call(%g), custom_call_target="AsyncCollectiveStart"'
    middle = [
        "}",
        "%middle (p: f32[100], q: f32[400], x: f32[50]) -> (f32[50], f32[400], f32[400]) {",
        "%p = f32[100] parameter(0)",
        "%q = f32[400] parameter(1)",
        "%x = f32[50] parameter(2)",
        "%y = f32[50] negate(%x)",
        gather,
        "ROOT %t = (f32[50], f32[400], f32[400]) tuple(%y, %q, %g)",
    ]
    entry = [
        "%a = f32[100] parameter(0)",
        "%x = f32[50] parameter(1)",
        "%s = (f32[100], f32[400]) fusion(%a), kind=kCustom, calls=%inside",
        "%b = f32[400] get-tuple-element(%s), index=1",
        "ROOT %m = (f32[50], f32[400], f32[400]) fusion(%a, %b, %x), kind=kCustom, calls=%middle",
    ]
    first = program(["%p = f32[100] parameter(0)", gather, start], entry[:3])
    both = program(["%p = f32[100] parameter(0)", gather, start, *middle], entry)
    assert count(first).collective_bytes == count(both).collective_bytes == {"all-gather": 1600}
    assert count(both).bytes - count(first).bytes == 200 + 200
