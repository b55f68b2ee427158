"""Shares beside the even share 1/E as colour: blue below, orange above, nothing where a share is even.

Colours are opaque only where a share is far from even, so the same picture suits light and dark pages.
"""

import base64
import html
import json
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from moejax.report import numbers

BELOW, ABOVE = (37, 99, 235), (234, 88, 12)
FULL = 4.0  # times the even share, or a part of it, at which a colour is opaque
MOST_COLUMNS = 180
MOST_HOVER_CELLS = 20_000  # of one strip; beyond it the values under the pointer are left out


def opacity(ratio: np.ndarray) -> np.ndarray:
    """From 0 at an even share to 1 at FULL times it, on a logarithmic scale."""
    octaves = np.abs(np.log2(np.maximum(ratio, 1e-9)))
    return np.minimum(octaves / np.log2(FULL), 1.0)


def strip(title: str, step_S: np.ndarray, load_SE: np.ndarray) -> str:
    """Experts (rows) over steps (columns), as a small SVG around a one-pixel-per-cell PNG."""
    E = load_SE.shape[1]
    step_S, ratio_SE = numbers.thin(step_S, load_SE * E, MOST_COLUMNS)
    width, left, right, top = 540, 52, 14, 4
    tall = int(np.clip(9 * E, 54, 160))
    inner, floor = width - left - right, top + tall
    parts = [
        f'<image class="heat" x="{left}" y="{top}" width="{inner}" height="{tall}" '
        f'preserveAspectRatio="none" href="{_png(ratio_SE.T)}"/>',
        f'<rect class="frame" x="{left}" y="{top}" width="{inner}" height="{tall}"/>',
    ]
    for expert in range(0, E, max(1, -(-E // 8))):
        y = top + (expert + 0.5) * tall / E
        parts.append(f'<text class="tick end" x="{left - 6}" y="{y + 4:.1f}">{expert}</text>')
    low, high = float(step_S[0]), float(step_S[-1])
    for step in numbers.linear_ticks(low, high, 6) if high > low else [low]:
        x = left + (step - low) / max(high - low, 1) * inner
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{floor + 15}">{numbers.plain(step, 4)}</text>')
    parts.append(
        f'<text class="tick mid" transform="translate(14 {top + tall / 2}) rotate(-90)">expert</text>'
    )
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption><svg class="strip" role="img" '
        f'aria-label="{html.escape(title)}" viewBox="0 0 {width} {floor + 20}"{_hover(step_S, ratio_SE)}>'
        f"{''.join(parts)}</svg></figure>"
    )


def _hover(step_S: np.ndarray, ratio_SE: np.ndarray) -> str:
    if ratio_SE.size > MOST_HOVER_CELLS:
        return ""
    percent_ES = np.round(100 * ratio_SE.T / ratio_SE.shape[1], 1).tolist()
    cells = {"step": [f"{step:,.0f}" for step in step_S], "percent": percent_ES}
    return f' data-strip="{html.escape(json.dumps(cells, separators=(",", ":")))}"'


def _png(ratio_RC: np.ndarray) -> str:
    """A data URI of an RGBA picture with one pixel per cell."""
    rows, columns = ratio_RC.shape
    pixels = np.where((ratio_RC < 1)[..., None], BELOW, ABOVE).astype(np.uint8)
    alpha = np.round(255 * opacity(ratio_RC)).astype(np.uint8)[..., None]
    lines = np.concatenate([pixels, alpha], -1).reshape(rows, columns * 4)
    raw = np.concatenate([np.zeros((rows, 1), np.uint8), lines], 1).tobytes()  # each row begins with filter 0
    header = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def matrix(title: str, row_names: Sequence[str], share_RE: np.ndarray) -> str:
    """Rows of shares that sum to one over the experts, each cell with its percentage where there is room."""
    R, E = share_RE.shape
    left, right, top, tall, width = 84, 14, 20, 22, 540
    wide = (width - left - right) / E
    parts = [
        f'<text class="tick mid" x="{left + (e + 0.5) * wide:.1f}" y="{top - 6}">{e}</text>'
        for e in range(0, E, max(1, -(-E // 16)))
    ]
    for r, name in enumerate(row_names):
        y = top + r * tall
        parts.append(f'<text class="tick end" x="{left - 7}" y="{y + 15}">{html.escape(name)}</text>')
        for e in range(E):
            parts.append(_cell(left + e * wide, y, wide, f"{name}, expert {e}", share_RE[r, e], E))
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg class="matrix" role="img" aria-label="{html.escape(title)}" '
        f'viewBox="0 0 {width} {top + R * tall + 4}">{"".join(parts)}</svg></figure>'
    )


def _cell(x: float, y: float, wide: float, name: str, share: float, num_experts: int) -> str:
    tall, gap = 22, 1 if wide > 8 else 0
    if not np.isfinite(share):
        return ""
    ratio = np.array(share * num_experts)
    tone, strong = ("below" if ratio < 1 else "above"), float(opacity(ratio))
    text = ""
    if wide >= 24:
        css = "cell strong" if strong > 0.6 else "cell"
        text = f'<text class="{css}" x="{x + wide / 2:.1f}" y="{y + 15}">{100 * share:.0f}</text>'
    return (
        f'<g><title>{html.escape(name)}: {share:.1%}</title><rect class="{tone}" fill-opacity="{strong:.2f}" '
        f'x="{x:.1f}" y="{y}" width="{wide - gap:.1f}" height="{tall - 1}"/>{text}</g>'
    )


def legend() -> str:
    """What the colours mean."""
    ratios = (0.25, 0.35, 0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)
    cells = "".join(
        f'<rect class="{"below" if ratio < 1 else "above"}" fill-opacity="{opacity(np.array(ratio)):.2f}" '
        f'x="{40 * i}" y="0" width="40" height="12"/>'
        for i, ratio in enumerate(ratios)
    )
    words = (("", 0, "at most 1/4"), ("mid", 180, "even share"), ("end", 360, "4 times or more"))
    texts = "".join(f'<text class="tick {css}" x="{x}" y="28">{word}</text>' for css, x, word in words)
    return f'<svg class="scale" viewBox="0 0 360 32">{cells}{texts}</svg>'
