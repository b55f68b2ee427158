"""Charts place their points where a ruler would."""

import numpy as np

from moejax.report.line_chart import Line, Mark, chart


def test_a_chart_places_points_by_hand():
    drawn = chart("Loss", [Line("a", np.array([0, 10]), np.array([0.0, 1.0]))], marks=(Mark("gzip", 0.5),))
    # 540 x 310 with margins 52, 14, 10, 34: x from 52 to 526; y 0 (the floor, 276) to 1.06 (10)
    assert 'points="52.0,276.0 526.0,25.1"' in drawn
    assert 'y1="150.5" y2="150.5"' in drawn  # 276 - 0.5 / 1.06 * 266
    assert "gzip 0.5</text>" in drawn


def test_a_chart_without_points_says_so():
    assert "Not recorded" in chart("Loss", [Line("a", np.zeros(0), np.zeros(0))])
