"""Puts the sections together and writes the page."""

import os
import pathlib

from moejax import durable
from moejax.report.page import page
from moejax.training.report import run_files, sections

REPORT_FILE = "report.html"


def write(run_dir: str | os.PathLike) -> pathlib.Path:
    """Write `report.html` into a run directory and return its path.

    Files of the run that are missing or damaged are named on the page; what is there is still drawn.
    """
    run_dir = pathlib.Path(run_dir)
    path = run_dir / REPORT_FILE
    durable.write_file(path, render(run_files.read(run_dir)).encode())
    return path


def render(run: run_files.RunFiles) -> str:
    """The page of a run as text."""
    chapters = (
        ("", sections.verdict(run) + sections.figures(run)),
        ("Training", sections.losses(run)),
        ("Expert load", sections.experts(run)),
        ("What the experts take", sections.kinds(run)),
        ("Samples", sections.samples(run)),
        ("Settings", sections.settings(run)),
        ("Data", sections.data(run)),
    )
    return page(f"{run.name}: training report", run.name, chapters)
