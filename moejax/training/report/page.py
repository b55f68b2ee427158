"""Puts the sections together and writes the page."""

import base64
import hashlib
import html
import os
import pathlib

from moejax.training.report import run_files, sections
from moejax.training.report.style import CSS, SCRIPT

REPORT_FILE = "report.html"


def write(run_dir: str | os.PathLike) -> pathlib.Path:
    """Write `report.html` into a run directory and return its path.

    The page loads nothing: charts are inline SVG, and its content policy forbids every request. Files of
    the run that are missing or damaged are named on the page; what is there is still drawn.
    """
    run_dir = pathlib.Path(run_dir)
    path = run_dir / REPORT_FILE
    part = path.with_name(path.name + ".part")
    part.write_text(render(run_files.read(run_dir)), encoding="utf-8")
    os.replace(part, path)
    return path


def render(run: run_files.RunFiles) -> str:
    """The page of a run as text."""
    name = html.escape(run.name)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    chapters = (
        ("", sections.verdict(run) + sections.figures(run)),
        ("Training", sections.losses(run)),
        ("Expert load", sections.experts(run)),
        ("What the experts take", sections.kinds(run)),
        ("Samples", sections.samples(run)),
        ("Settings", sections.settings(run)),
        ("Data", sections.data(run)),
    )
    body = "".join(f"<h2>{title}</h2>{text}" if title else text for title, text in chapters)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: training report</title><style>{CSS}</style></head>\n"
        f'<body><h1>{name}</h1>{body}<div id="tip"></div><script>{SCRIPT}</script></body></html>\n'
    )
