"""One self-contained HTML page: charts are inline SVG, and its content policy forbids every request."""

import base64
import hashlib
import html
from collections.abc import Iterable

from moejax.report.style import CSS, SCRIPT

escape = html.escape


def page(title: str, heading: str, chapters: Iterable[tuple[str, str]]) -> str:
    """The page as text.

    Args:
      title: of the browser's tab.
      heading: at the top of the page.
      chapters: (heading, HTML); a chapter without a heading follows the one before.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    body = "".join(f"<h2>{escape(name)}</h2>{text}" if name else text for name, text in chapters)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n"
        f'<body><h1>{escape(heading)}</h1>{body}<div id="tip"></div><script>{SCRIPT}</script></body></html>\n'
    )


def none(words: str) -> str:
    """A sentence in place of something that is missing."""
    return f'<p class="none">{escape(words)}</p>'


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """(label, value) pairs as the numbers that people ask for first."""
    cells = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in figures)
    return f'<div class="tiles">{cells}</div>'


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of texts."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="figures"><tr>{top}</tr>{body}</table></div>'
