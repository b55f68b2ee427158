"""What every benchmark program does with its Report: a table on the screen, and JSON."""

import json
import pathlib

from moejax.bench.report import WORDS, Bar, Measure, Report


def finish(report: Report, json_path: str | None) -> None:
    """Print the report; with a path, also write it there."""
    print(table(report))
    if json_path:
        write(report, pathlib.Path(json_path))


def write(report: Report, path: pathlib.Path) -> None:
    """The report as JSON, which `python -m moejax.bench table` reads."""
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
    lines += [
        "",
        f"{'':<{width}}  {'value':>10}  {'min to max':^25}{'n':>4}  {'95% interval of the mean':<25}",
    ]
    lines += [_row(measure, width) for measure in report.measures]
    lines += [""] + [f"note: {note}" for note in report.notes] + [_verdict(report)]
    return "\n".join(lines)


def _row(measure: Measure, width: int) -> str:
    spread, interval = (_pair(pair) for pair in (measure.spread, measure.interval))
    row = f"{measure.name:<{width}}  {measure.value:>10.4g}  {spread:^25}{measure.n:>4}  {interval:<25}"
    return f"{row}  {measure.unit}" if interval else f"{row.rstrip()}  {measure.unit}"


def _pair(pair: tuple[float, float] | None) -> str:
    return f"{pair[0]:.4g} to {pair[1]:.4g}" if pair else ""


def _verdict(report: Report) -> str:
    found = {measure.name: measure for measure in report.measures}
    bars = "; ".join(_reached(bar, found.get(bar.measure)) for bar in report.bar)
    return f"the claim {WORDS[report.verdict]}: {bars}"


def _reached(bar: Bar, measure: Measure | None) -> str:
    if measure is None:
        return f"{bar.measure} not measured, wanted {bar}"
    interval = f" ({_pair(measure.interval)})" if measure.interval else ""
    return f"{bar.measure} {measure.value:.3g}{interval}, wanted {bar}"
