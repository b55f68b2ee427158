"""What every benchmark program does with its Report: a table on the screen, and JSON."""

import json
import pathlib

from moejax.bench.report import Measure, Report


def finish(report: Report, json_path: str | None) -> None:
    """Print the report; with a path, also write it there."""
    print(table(report))
    if json_path:
        path = pathlib.Path(json_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        print(f"written to {path}")


def table(report: Report) -> str:
    """The report for people to read."""
    width = max(len(measure.name) for measure in report.measures)
    lines = [
        report.name,
        f"claim: {report.claim}",
        f"machine: {report.machine}",
        f"baseline: {report.baseline}",
    ]
    lines += [f"{name}: {value}" for name, value in report.settings.items()]
    lines += ["", f"{'':<{width}}  {'median':>10}  {'min to max':^25}{'n':>4}"]
    lines += [_row(measure, width) for measure in report.measures]
    lines += [""] + [f"note: {note}" for note in report.notes] + [_verdict(report)]
    return "\n".join(lines)


def _row(measure: Measure, width: int) -> str:
    low, high = (f"{x:.4g}" for x in measure.spread or (measure.value, measure.value))
    spread = f"{low:>11} to {high:<10}" if measure.spread else ""
    return f"{measure.name:<{width}}  {measure.value:>10.4g}  {spread:<25}{measure.n:>4}  {measure.unit}"


def _verdict(report: Report) -> str:
    value = {measure.name: measure.value for measure in report.measures}
    bars = []
    for bar in report.bar:
        found = f"{value[bar.measure]:.3g}" if bar.measure in value else "not measured"
        bars.append(f"{bar.measure} {found}, wanted {bar.at_least:g} or more")
    words = {True: "holds", False: "does not hold", None: "is undecided"}
    return f"the claim {words[report.holds]}: {'; '.join(bars)}"
