"""The page of all results, made of the reports that are kept as JSON."""

import json
import pathlib

HEAD = """# Results

Every row is a program that looks whether a published claim holds here: on a small machine, with small
models, in the direction that the claim names. The verdict follows from bars that are written in the program
before it runs; *inconclusive* means that the 95% interval lies on both sides of a bar. A claim that fails
stays here. Minutes are those of the run; a model that an earlier program had trained already took none.

This page is made of the files in `results/` by `python -m moejax.bench table`.
"""


def page(folder: pathlib.Path) -> str:
    """In Markdown, from all reports in the folder that say which command made them."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    reports = [report for report in reports if report.get("command")]
    lines = [HEAD, "| program | claim | what we measured | verdict | minutes |", "|---|---|---|---|---|"]
    lines += [_row(report) for report in reports]
    return "\n".join([*lines, "", *(_details(report, folder) for report in reports)])


def _row(report: dict) -> str:
    found = {measure["name"]: measure for measure in report["measures"]}
    figures = "<br>".join(_figure(bar, found.get(bar["measure"])) for bar in report["bar"])
    name, minutes = report["name"], report["seconds"] / 60
    return f"| [{name}](#{name}) | {report['claim']} | {figures} | **{report['verdict']}** | {minutes:.1f} |"


def _figure(bar: dict, measure: dict | None) -> str:
    wanted = " and ".join(
        f"{sign} {bar[side]:.4g}" for side, sign in (("at_least", ">="), ("at_most", "<=")) if side in bar
    )
    if measure is None:
        return f"{bar['measure']}: not measured (wanted {wanted})"
    interval = measure.get("interval")
    between = f", {interval[0]:.3g} to {interval[1]:.3g}" if interval else ""
    return f"{bar['measure']}: {measure['value']:.3g} {measure['unit']}{between} (wanted {wanted})"


def _details(report: dict, folder: pathlib.Path) -> str:
    name = report["name"]
    machine = report["machine"]
    lines = [f"## {name}", "", report["source"], "", f"Compared with: {report['baseline']}.", ""]
    lines += ["```", report["command"], "```", ""]
    lines += [f"- {note}" for note in report["notes"]] + [""] * bool(report["notes"])
    lines += [f"Machine: {machine['processor']}, {machine['cores']} cores, JAX {machine['jax']}.", ""]
    if (folder / f"{name}.svg").exists():
        lines += [f"![{name}](../{folder.name}/{name}.svg)", ""]
    return "\n".join(lines)
