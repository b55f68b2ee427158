"""A picture of a report: how far every barred figure is from its bar, and the program's curves."""

import math
import pathlib
import textwrap
from collections.abc import Sequence

from moejax.bench.paper import Chart
from moejax.bench.report import FAILS, HOLDS, INCONCLUSIVE, Bar, Measure, Report

COLOURS = {HOLDS: "#2a7f4f", FAILS: "#b3382c", INCONCLUSIVE: "#8a7a2b"}
WIDTH = 8.0  # inches
MANY = 4  # curves, beyond which their names stand beside them


def draw(report: Report, charts: Sequence[Chart], path: pathlib.Path) -> bool:
    """Write an SVG; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    from matplotlib.figure import Figure

    found = {measure.name: measure for measure in report.measures}
    bars = [bar for bar in report.bar if bar.measure in found]
    heights = [0.75] * len(bars) + [3.2] * len(charts)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.6), layout="constrained")
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    figure.suptitle(f"{report.name}: {report.verdict}", color=COLOURS[report.verdict])
    for panel, bar in zip(panels, bars, strict=False):
        _bar(panel, bar, found[bar.measure])
    for panel, chart in zip(panels[len(bars) :], charts, strict=True):
        _chart(panel, chart)
    # the same figures give the same bytes
    with matplotlib.rc_context({"svg.hashsalt": report.name, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
    return True


def _bar(panel, bar: Bar, measure: Measure) -> None:
    """One line: samples, mean and interval, and the side of the bar where the claim wants them."""
    colour = COLOURS[bar.verdict(measure)]
    low, high = measure.interval or (measure.value, measure.value)
    ends = [x for x in (low, high, *measure.samples, bar.at_least, bar.at_most) if math.isfinite(x)]
    margin = 0.15 * (max(ends) - min(ends) or abs(measure.value) or 1.0)
    left, right = min(ends) - margin, max(ends) + margin
    panel.axvspan(max(left, bar.at_least), min(right, bar.at_most), color="#2a7f4f", alpha=0.10, lw=0)
    panel.plot([low, high], [0, 0], color=colour, lw=3, solid_capstyle="butt")
    panel.plot(measure.samples, [0] * len(measure.samples), "|", color="black", ms=9, alpha=0.6)
    panel.plot([measure.value], [0], "o", color=colour, ms=7)
    panel.set(xlim=(left, right), yticks=[], xlabel=measure.unit)
    panel.set_title(textwrap.shorten(f"{measure.name} (wanted: {bar})", 110), fontsize=9, loc="left")
    panel.spines[["left", "right", "top"]].set_visible(False)
    panel.tick_params(labelsize=8)
    panel.xaxis.label.set_size(8)


def _chart(panel, chart: Chart) -> None:
    for curve in chart.curves:
        (line,) = panel.plot(
            curve.x, curve.y, marker="o" if len(curve.x) < 30 else None, ms=4, label=curve.name
        )
        if curve.low:
            panel.fill_between(curve.x, curve.low, curve.high, color=line.get_color(), alpha=0.15, lw=0)
    panel.set(xlabel=chart.x_name, ylabel=chart.y_name)
    panel.set_title(chart.title, fontsize=10, loc="left")
    panel.grid(alpha=0.25)
    if chart.log_x:
        panel.set_xscale("log", base=2)
    elif all(float(x).is_integer() for curve in chart.curves for x in curve.x):
        panel.xaxis.get_major_locator().set_params(integer=True)
    if len(chart.curves) > MANY:
        panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    elif len(chart.curves) > 1:
        panel.legend(fontsize=8)
