"""What a choice owes to ids, gates of chunks, and both ways to compute a layer."""

import numpy as np
import pytest

from moejax.bench import union_timing
from moejax.bench.papers import blockffn
from pallas_kernels.union_experts.api import union_experts
from tests.analysis.routing import traces


def test_what_ids_tell_by_hand():
    """Expert 0 follows the id, expert 1 ignores it, experts 2 and 3 never change."""
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]], bool)
    assert blockffn.known_from_id(mask, np.array([7, 7, 8, 8])) == pytest.approx(0.5)
    assert blockffn.known_from_id(mask[:, 2:], np.array([7, 7, 8, 8])) == 0.0


def test_figures_of_a_trace_by_hand():
    """Tokens take {0}, {0, 1}, {1}, {2} of four experts; 4 is an empty slot."""
    trace = traces.trace([[[0, 4], [0, 1], [1, 4], [2, 4]]], 4, token=[0, 0, 0, 0])
    seen = blockffn.look(trace, 2.0)
    assert (seen.experts, seen.never, seen.always, seen.loss) == (1.25, 0.25, 0.0, 2.0)
    assert (seen.sparsity[1], seen.sparsity[2], seen.sparsity[4]) == (1 - 1.25 / 4, 0.5, 0.25)
    assert seen.reuse == pytest.approx((1 + 0.5 + 0) / 3)


def test_gates_of_chunks_lie_within_a_text():
    expert = [[[0], [1], [1], [0], [1], [2]]]  # 2 is an empty slot
    trace = traces.trace(expert, 2, text=[0, 0, 1, 1, 1, 2], gate=np.full((1, 6, 1), 0.5))
    found = blockffn.chunk_weights(trace, 2, most=4)
    np.testing.assert_array_equal(found, [[[0.5, 0], [0, 0.5]], [[0, 0.5], [0.5, 0]]])


def test_all_experts_and_their_union_are_one_layer():
    rng = np.random.default_rng(0)
    N, E, D, F = 3, 4, 5, 2
    x, up, down = (rng.normal(size=s).astype(np.float32) for s in ((N, D), (E, D, F), (E, F, D)))
    weight = np.where(rng.random((N, E)) < 0.5, rng.random((N, E)), 0).astype(np.float32)
    whole = union_timing.all_experts(x, weight, up.transpose(1, 0, 2).reshape(D, -1), down.reshape(-1, D))
    np.testing.assert_allclose(whole, union_experts(x, weight, up, down), rtol=1e-4, atol=1e-5)


def test_arms_differ_in_losses_and_router_alone():
    cfg = blockffn.Settings()
    names = {
        arm: [type(x).__name__ for x in blockffn.run_of(cfg, arm).train.losses]
        for arm in (blockffn.NONE, blockffn.BOTH, blockffn.LOCAL, blockffn.CHUNK)
    }
    assert names == {
        blockffn.NONE: ["NextToken"],
        blockffn.BOTH: ["NextToken", "ActivationLocality", "ChunkSparsity"],
        blockffn.LOCAL: ["NextToken", "ActivationLocality"],
        blockffn.CHUNK: ["NextToken", "ChunkSparsity"],
    }
    ours, other = (
        run.model.groups[0].blocks[0].ffn
        for run in (blockffn.run_of(cfg, blockffn.BOTH), blockffn.top_k_run(cfg, 5))
    )
    assert (ours.num_experts, ours.hidden, ours.gated) == (other.num_experts, other.hidden, other.gated)
    assert (ours.selector.num_slots, other.selector.num_slots) == (24, 5)
