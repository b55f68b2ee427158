"""The pages of the scaling benchmark: docs/scaling.md and the tables of the README, made of its report."""

from collections.abc import Mapping

from moejax.bench.report import WORDS, Report
from moejax.bench.scaling_rows import FAILURES, figures
from moejax.errors import UsageError

BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"  # around the tables in the README
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
HEAD = """# Scaling

A train step of a mixture of experts over several devices: measured on virtual devices of one CPU, and
compiled ahead of time for slices of TPUs. Made from `results/scaling.json` by

    python -m moejax.bench scaling --pages

"""
MEASURED = """Measured: a small model, bytes and FLOPs of each device and step as counted in the compiled
program (MB = 10^6 bytes). Virtual devices share the machine's cores, so the last column, the time over that
of one device with the same rows, is 1 at best.

"""
COMPILED = """Compiled, never run: a model as large as Qwen3-30B-A3B, 4096 tokens per chip, per chip and step
(GB = 10^9 bytes). Times are rooflines: what products, memory and links between chips would each take alone at
the vendor's rates.

"""
MEASURED_COLUMNS = (
    *("layout", "devices", "rows", "ms per step", "MFLOP"),
    *("all-reduce, MB", "all-gather, MB", "reduce-scatter, MB", "all-to-all, MB", "time / one's"),
)
COMPILED_COLUMNS = (
    *("slice", "chips", "memory, GiB", "TFLOP", "all-reduce, GB", "all-gather, GB", "reduce-scatter, GB"),
    *("all-to-all, GB", "permute, GB", "products, s", "memory, s", "links, s"),
)


def page(report: Report) -> str:
    """docs/scaling.md."""
    settings = {name: facts for name, facts in report.settings.items() if name != FAILURES}
    parts = [f"## {name.capitalize()}\n\n{_settings(facts)}" for name, facts in settings.items()]
    notes = "".join(f"- {note}\n" for note in report.notes)
    return (
        HEAD
        + f"Claim: {report.claim}. It {WORDS[report.verdict]}.\n\n{tables(report)}\n"
        + "\n".join(parts)
        + f"\n## Notes\n\n{notes}"
    )


def tables(report: Report) -> str:
    """What was measured, and what was compiled, as far as there is something."""
    found = figures(report.measures)
    failures = report.settings.get(FAILURES, {})
    ran = {name: row for name, row in found.items() if name.startswith("measured ")}
    made = {name: row for name, row in found.items() if name.startswith("compiled ")}
    parts = []
    if ran:
        parts.append(MEASURED + _table(MEASURED_COLUMNS, {n: _measured(n, row) for n, row in ran.items()}))
    if made or failures:
        lines = {n: _compiled(row) for n, row in made.items()} | {n: [why] for n, why in failures.items()}
        parts.append(COMPILED + _table(COMPILED_COLUMNS, dict(sorted(lines.items(), key=_by_size))))
    return "\n".join(parts)


def _measured(name: str, row: Mapping[str, float]) -> list[str]:
    layout, devices, rows = name.removeprefix("measured ").split(", ")
    moved = [_number(row.get(f"{kind} per device", 0) / 1e6) for kind in KINDS[:4]]
    return [
        layout,
        devices.split()[0],
        rows.split()[0],
        _number(1e3 * row["seconds per step"]),
        _number(row["FLOPs per device"] / 1e6),
        *moved,
        _number(row.get("time / that of one device", 1.0)),
    ]


def _compiled(row: Mapping[str, float]) -> list[str]:
    moved = [_number(row.get(f"{kind} per chip", 0) / 1e9) for kind in KINDS]
    times = [_number(row[f"roofline, {part}"]) for part in ("products", "memory", "links")]
    return [
        _number(row["memory per chip"] / 2**30),
        _number(row["FLOPs per chip"] / 1e12),
        *moved,
        *times,
    ]


def _by_size(line: tuple[str, list[str]]) -> tuple[str, int]:
    name = line[0].removeprefix("compiled ")
    return name.partition(":")[0], _chips(name)


def _chips(topology: str) -> int:
    product = 1
    for side in topology.partition(":")[2].split("x"):
        product *= int(side)
    return product


def _table(columns: tuple[str, ...], lines: Mapping[str, list[str]]) -> str:
    text = f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}\n"
    for name, cells in lines.items():
        if name.startswith("compiled "):
            topology = name.removeprefix("compiled ")
            cells = [topology, str(_chips(topology)), *cells]
        cells = cells + [""] * (len(columns) - len(cells))
        text += f"| {' | '.join(cells)} |\n"
    return text


def _number(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _settings(facts: Mapping) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in facts.items())


def into(text: str, tables: str) -> str:
    """A text with the tables between its marks.

    Raises:
      UsageError: there are no marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError(f"there is no place for the tables; put {BEGIN} and {END} on lines of their own")
    return f"{before}{BEGIN}\n{tables}{END}{after}"
