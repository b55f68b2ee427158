"""A line chart as inline SVG: axes with round ticks, a legend, dashed marks, values under the pointer."""

import dataclasses
import html
import json

import numpy as np

from moejax.report import numbers

MOST_POINTS = 500  # per line; more cannot be told apart at this width


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve; `tone` names its colour in the style sheet."""

    name: str
    step_S: np.ndarray
    value_S: np.ndarray
    tone: str = "a"
    noisy: bool = False  # drawn faint under its running mean
    dots: bool = False


@dataclasses.dataclass(frozen=True)
class Mark:
    """A dashed horizontal line with a name."""

    name: str
    value: float


@dataclasses.dataclass(frozen=True)
class Frame:
    """The rectangle that data is drawn in, and the ranges it shows."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool
    left: int = 52
    right: int = 14
    top: int = 10
    bottom: int = 34

    def px(self, x):
        """Horizontal pixel of a step."""
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.width - self.left - self.right)

    def py(self, y):
        """Vertical pixel of a value."""
        low, high, y = (np.log10(v) for v in (*self.y, y)) if self.log else (*self.y, y)
        return self.height - self.bottom - (y - low) / (high - low) * (self.height - self.top - self.bottom)


def chart(
    title: str,
    lines: list[Line],
    marks: tuple[Mark, ...] = (),
    log: bool = False,
    small: bool = False,
    x_name: str = "step",
) -> str:
    """A `<figure>` with the lines that have points, or a sentence when none has.

    Args:
      title: what is shown, with its unit.
      lines: drawn in order.
      marks: values to compare with.
      log: logarithmic values; falls back to linear when a value is not positive.
      small: a tile among others instead of a main figure.
      x_name: what the horizontal axis counts.
    """
    lines = [line for line in map(_finite, lines) if line.step_S.size]
    if not lines:
        return (
            f'<figure><figcaption>{html.escape(title)}</figcaption><p class="none">Not recorded.</p></figure>'
        )
    frame = _frame(lines, marks, log, small)
    parts = [
        _axes(frame, small, x_name),
        *(_mark(frame, mark) for mark in marks),
        *(_curve(frame, l) for l in lines),
    ]
    keys = "".join(f'<span class="key {l.tone}">{html.escape(l.name)}</span>' for l in lines)
    legend = f'<span class="legend">{keys}</span>' if len(lines) > 1 else ""
    parts.append(f'<line class="cross" y1="{frame.top}" y2="{frame.height - frame.bottom}"/>')
    return (
        f"<figure><figcaption>{html.escape(title)}{legend}</figcaption>"
        f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{html.escape(title)}" data-chart="{html.escape(_hover(frame, lines, x_name))}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _finite(line: Line) -> Line:
    keep_S = np.isfinite(line.value_S)
    step_S, value_S = numbers.thin(line.step_S[keep_S], line.value_S[keep_S], MOST_POINTS)
    return dataclasses.replace(line, step_S=step_S, value_S=value_S)


def _frame(lines: list[Line], marks: tuple[Mark, ...], log: bool, small: bool) -> Frame:
    values = np.concatenate([*(line.value_S for line in lines), [mark.value for mark in marks]])
    steps = np.concatenate([line.step_S for line in lines])
    log = log and values.min() > 0
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(high), 1e-30):  # a constant still needs a range
        low, high = (low / 2, high * 2) if log else (min(2 * low, 0), 2 * high if high > 0 else 1)
    elif log:
        margin = (high / low) ** 0.05
        low, high = low / margin, high * margin
    else:
        margin = 0.06 * (high - low)
        low, high = (0.0 if 0 <= low < 2 * margin else low - margin), high + margin
    width, height, bottom = (340, 180, 24) if small else (540, 310, 34)
    return Frame(width, height, (0.0, max(float(steps.max()), 1.0)), (low, high), log, bottom=bottom)


def _axes(frame: Frame, small: bool, x_name: str) -> str:
    ticks = numbers.log_ticks(*frame.y) if frame.log else numbers.linear_ticks(*frame.y, 4 if small else 6)
    right, floor = frame.width - frame.right, frame.height - frame.bottom
    parts = [f'<line class="axis" x1="{frame.left}" x2="{right}" y1="{floor}" y2="{floor}"/>']
    for value in ticks:
        y = frame.py(value)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick end" x="{frame.left - 7}" y="{y + 4:.1f}">{numbers.plain(value)}</text>'
        )
    for step in numbers.linear_ticks(*frame.x, 4 if small else 6):
        x = frame.px(step)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}"/>')
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{floor + 17}">{numbers.plain(step, 4)}</text>')
    if not small:
        name = html.escape(x_name)
        parts.append(f'<text class="tick end" x="{right}" y="{frame.height - 2}">{name}</text>')
    return "".join(parts)


def _mark(frame: Frame, mark: Mark) -> str:
    y = frame.py(mark.value)
    right = frame.width - frame.right
    return (
        f'<line class="mark" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick end" x="{right - 3}" y="{y - 5:.1f}">'
        f"{html.escape(mark.name)} {numbers.plain(mark.value, 4)}</text>"
    )


def _curve(frame: Frame, line: Line) -> str:
    if line.noisy and len(line.value_S) >= 40:
        raw = _path(frame, line.step_S, line.value_S, f"line faint {line.tone}")
        mean_S = numbers.smooth(line.value_S, len(line.value_S) // 20)
        return raw + _path(frame, line.step_S, mean_S, f"line {line.tone}")
    dots = line.dots or len(line.value_S) == 1
    circles = "".join(
        f'<circle class="dot {line.tone}" cx="{frame.px(x):.1f}" cy="{frame.py(y):.1f}" r="2.6"/>'
        for x, y in zip(line.step_S, line.value_S, strict=True)
    )
    return _path(frame, line.step_S, line.value_S, f"line {line.tone}") + circles * dots


def _path(frame: Frame, step_S: np.ndarray, value_S: np.ndarray, css: str) -> str:
    points = " ".join(f"{frame.px(x):.1f},{frame.py(y):.1f}" for x, y in zip(step_S, value_S, strict=True))
    return f'<polyline class="{css}" points="{points}"/>'


def _hover(frame: Frame, lines: list[Line], x_name: str) -> str:
    """What the script needs to show values: pixels of each point and the text of each value."""
    series = [
        {
            "name": line.name,
            "px": [round(float(frame.px(x)), 1) for x in line.step_S],
            "step": [f"{x:,.0f}" for x in line.step_S],
            "value": [numbers.plain(float(y), 4) for y in line.value_S],
        }
        for line in lines
    ]
    return json.dumps({"width": frame.width, "x": x_name, "lines": series}, separators=(",", ":"))
