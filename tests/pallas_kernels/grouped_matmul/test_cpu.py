"""The XLA tile loops: which chunks are computed, and that nothing big is copied."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import grouped_matmul
from pallas_kernels.grouped_matmul import cpu


@pytest.mark.parametrize(
    ("num_rows", "num_groups", "lengths"),
    [
        (4096, 8, (64, 128, 192, 256, 320, 384, 448, 512)),  # the mean group is the longest chunk
        (131072, 128, tuple(range(128, 1025, 128))),
        (256, 4, (16, 32, 48, 64)),
        (20, 1, (16, 20)),  # no chunk is longer than the buffer
        (5, 8, (5,)),
    ],
)
def test_chunk_lengths(num_rows, num_groups, lengths):
    assert cpu.chunk_lengths(num_rows, num_groups) == lengths


def test_schedule_of_three_groups_by_hand():
    """Lengths 4, 8: five rows are one chunk of 8, none is none, eleven are a chunk of 4 and a full one."""
    (group_C, first_C, end_C), stop_L = cpu.schedule(jnp.array([0, 5, 5]), jnp.array([5, 5, 16]), (4, 8), 16)
    assert stop_L.tolist() == [1, 2, 3]  # one of length 4, one of length 8, one that is not its group's first
    assert group_C[:3].tolist() == [2, 0, 2]
    assert first_C[:3].tolist() == [5, 0, 8]
    assert end_C[:3].tolist() == [8, 5, 16]


schedule = jax.jit(cpu.schedule, static_argnums=(2, 3))


@settings(max_examples=100)
@given(st.sampled_from([(300, 8), (7, 3), (64, 1)]), st.integers(0, 2**32 - 1))
def test_every_row_of_a_group_is_in_one_chunk(shape, seed):
    num_rows, num_groups = shape
    rng = np.random.default_rng(seed)
    size_G = rng.multinomial(rng.integers(0, num_rows + 1), rng.dirichlet(np.full(num_groups, 0.3)))
    end_G = np.cumsum(size_G).astype(np.int32)
    lengths = cpu.chunk_lengths(num_rows, num_groups)
    chunks, stop_L = schedule(end_G - size_G.astype(np.int32), end_G, lengths, num_rows)
    visits = np.zeros((num_groups, num_rows), int)
    begun = set()
    for i, (group, first, end) in enumerate(zip(*(x[: stop_L[-1]].tolist() for x in chunks), strict=True)):
        length_index = int(np.searchsorted(stop_L, i, side="right"))
        length = (*lengths, lengths[-1])[length_index]
        assert length - lengths[0] < end - first <= length  # less than a step is wasted
        assert (group in begun) == (length_index == len(lengths))
        begun.add(group)
        visits[group, first:end] += 1
    for group in range(num_groups):
        assert visits[group].sum() == size_G[group]
        assert (visits[group, end_G[group] - size_G[group] : end_G[group]] == 1).all()


def test_results_and_weights_are_never_copied_whole():
    M, K, N, G = 512, 48, 80, 4

    def run(lhs_MK, rhs_GKN, size_G, cotangent_MN):
        out_MN, backward = jax.vjp(lambda lhs, rhs: grouped_matmul(lhs, rhs, size_G), lhs_MK, rhs_GKN)
        return out_MN, backward(cotangent_MN)

    operands = [jnp.zeros(dims) for dims in ((M, K), (G, K, N), (M, N))]
    operands.insert(2, jnp.zeros(G, jnp.int32))
    program = jax.jit(run).lower(*operands).compile().as_text()
    whole = rf"f32\[({M},{K}|{M},{N}|{G},{K},{N}|{G},{N},{K})\]"
    assert re.search(rf"= {whole}\S* fusion\(", program)  # dims are written as this test thinks
    assert re.findall(rf"= {whole}\S* (?:copy|transpose)\(.*", program) == []


def test_the_program_does_not_grow_with_the_groups():
    def loops(G):
        operands = jnp.zeros((16 * G, 4)), jnp.zeros((G, 4, 4)), jnp.zeros(G, jnp.int32)
        return jax.jit(grouped_matmul).lower(*operands).as_text().count("stablehlo.while")

    assert loops(64) == loops(4)
