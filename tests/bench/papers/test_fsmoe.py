"""Predicted times of the grid: bounds that any plan keeps."""

from moejax.analysis.overlap_plan import layer_time
from moejax.bench.papers import fsmoe


def test_the_grid_of_testbed_b():
    """Three batches, lengths, widths, ratios and loads, two kinds of experts."""
    settings = fsmoe.grid()
    assert len(settings) == len(set(settings)) == 3**5 * 2


def test_nothing_hidden_by_hand():
    """(4, 512, 2048, 8192) takes 7.341 ms forward and 9.348 ms backward in one chunk, per layer."""
    one = fsmoe.Setting(4, 512, 2048, 8192, 2.4, 2)
    passes = [layer_time(layer.chunk(1), 1) for layer in (one.layer, one.layer.backward())]
    assert [round(time, 3) for time in passes] == [7.341, 9.348]
    # 4 x 2048^2 parameters over 4 devices, of four layers, in one message
    gradients = 8.37e-2 + 5.99e-7 * 4 * 2048**2
    assert abs(fsmoe.plain_time(one) - (4 * (3 * one.dense + sum(passes)) + gradients)) < 1e-9


def test_the_plan_hides_what_can_be_hidden():
    """At least the best degrees and nothing of the gradients, at most nothing hidden."""
    for one in fsmoe.grid()[::97]:
        best = sum(
            min(layer_time(layer.chunk(r), r) for r in (1, 2, 4, 8))
            for layer in (one.layer, one.layer.backward())
        )
        least = fsmoe.DEPTH * (3 * one.dense + best)
        assert least - 1e-9 <= fsmoe.planned_time(one) <= fsmoe.plain_time(one) + 1e-9
