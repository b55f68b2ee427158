"""Where rows go, by hand, and that an exchange costs what it moves, not what its buffers could hold."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from moejax import sharding
from moejax.analysis.flops import count
from moejax.dispatch import ragged
from moejax.dispatch.all_to_all import RaggedAllToAll, plan
from moejax.errors import UsageError
from tests.contracts import tiny

# 640 tokens of each of 8 devices; when all go to the one expert of device 0, its buffer is full.
B, T, D, E = 8, 640, 128, 8


def test_where_rows_go_by_hand():
    """Device 0 has 2, 1 | 0, 3 rows for experts 0, 1 | 2, 3 and device 1 has 1, 0 | 2, 2."""
    mesh = jax.make_mesh((2,), ("expert",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    run = functools.partial(plan, num_local=2)
    mapped = jax.shard_map(run, mesh=mesh, in_specs=P("expert"), out_specs=P("expert"), check_vma=True)
    slices, size_e = jax.jit(mapped)(np.array([2, 1, 0, 3, 1, 0, 2, 2]))
    of_device = {name: x.reshape(2, 4).tolist() for name, x in slices._asdict().items()}
    assert of_device == {
        "input_offsets": [[0, 2, 3, 3], [0, 1, 1, 3]],
        "send_sizes": [[2, 1, 0, 3], [1, 0, 2, 2]],
        "output_offsets": [[0, 3, 0, 2], [2, 4, 0, 5]],
        "recv_sizes": [[2, 1, 1, 0], [0, 3, 2, 2]],
        "source_offsets": [[0, 2, 0, 1], [3, 3, 1, 3]],
        "arrival_offsets": [[0, 3, 2, 4], [0, 2, 0, 5]],
    }
    assert size_e.tolist() == [3, 1, 2, 5]


def step(x_BTD, expert_BTK, gate_BTK, p):
    """Forward and backward pass through experts that do nothing, so that only the exchange costs."""

    def run(x_BTD):
        return RaggedAllToAll()(lambda p, rows_RD, size_E: rows_RD, p, x_BTD, expert_BTK, gate_BTK)[0]

    y_BTD, pull = jax.vjp(run, x_BTD)
    return y_BTD, pull(x_BTD)


def inputs(expert_BT, mesh):
    """Arguments of `step`; the experts have nothing but their number."""
    experts = jax.device_put(np.zeros((E, 1)), jax.NamedSharding(mesh, sharding.stored(("expert", ""))))
    ones = np.ones((B, T, D), np.float32)
    rows = ones, expert_BT[..., None].astype(np.int32), ones[..., :1]
    return *sharding.place_rows(rows, mesh), {"none": experts}


def compiled(args):
    return jax.jit(lambda *args: step(*args)).lower(*args).compile(compiler_options=tiny.QUICK_COMPILE)


def test_an_exchange_costs_what_it_moves(monkeypatch):
    """Bytes that really pass through memory with 10% of the slots full, against all of them full.

    Buffers of zeros count; loops of the compiled program count as often as they ran.
    """
    begun, places = set(), ragged._places

    def noted(rank_J, *args, **kwargs):
        jax.debug.callback(lambda first: begun.add(int(first)), rank_J[0])
        return places(rank_J, *args, **kwargs)

    def cost(args):
        begun.clear()
        jax.block_until_ready(instrumented(*args))
        jax.effects_barrier()
        return len(begun), count(text, dynamic_trips=len(begun)).bytes

    with tiny.on_mesh(expert=8) as mesh:
        all_full = inputs(np.zeros((B, T)), mesh)
        tenth = inputs(np.broadcast_to(np.where(np.arange(T) % 10 == 0, 0, E), (B, T)), mesh)
        text = compiled(all_full).as_text()
        monkeypatch.setattr(ragged, "_places", noted)
        instrumented = compiled(all_full)
        (few_trips, few_bytes), (all_trips, all_bytes) = cost(tenth), cost(all_full)
    assert (few_trips, all_trips) == (7, 64)  # 64 and 640 rows from every device, 10 at a time
    assert few_bytes <= 0.2 * all_bytes


def test_no_chunk_is_refused():
    with pytest.raises(UsageError, match=r"dispatch.chunks=0 must be at least 1"):
        RaggedAllToAll(chunks=0)
