"""How a train step of a mixture of experts scales: measured on virtual devices, compiled for TPU slices."""

import dataclasses
import json
import pathlib
import time

from absl import flags

from moejax.analysis import machine
from moejax.bench import scaling_compiled as compiled
from moejax.bench import scaling_measured as measured
from moejax.bench import scaling_page
from moejax.bench.report import Bar, Measure, Report
from moejax.bench.run import finish, write
from moejax.bench.scaling_rows import FAILURES, Row, part_of, row_of
from moejax.errors import UsageError
from moejax.flags import Call, Program

SUMMARY = """
Measure a train step over 1 to 8 virtual devices, and compile a large one ahead of time for slices of TPUs.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu \\
        python -m moejax.bench scaling --part=measured --json=results/scaling.json
    JAX_PLATFORMS=cpu python -m moejax.bench scaling --part=compiled --json=results/scaling.json
    python -m moejax.bench scaling --pages

Each part leaves the other's figures in the file alone, and every slice those of the others.
"""
SLICES = "v5e:8x8,v5e:16x16,v5p:4x4x4,v5p:8x8x8,v6e:8x8,v6e:16x16"
JSON, PAGE, README = "results/scaling.json", "docs/scaling.md", "README.md"
CLAIM = (
    "eight devices compute at most a tenth more each than an eighth of what one computes for the same batch, "
    "by data and by expert parallelism, and a step of a 30B model fits into the chips of v5e:16x16"
)
# Shares of the work of one device, and of a chip's memory.
BAR = (
    Bar("work: data, FLOPs of one / 8 times those of each", at_least=1 / 1.1),
    Bar("work: expert, FLOPs of one / 8 times those of each", at_least=1 / 1.1),
    Bar("compiled v5e:16x16: memory of a chip / needed", at_least=1.0),
)
NOTES = (
    "virtual devices share the cores of one machine: no layout can be faster than one device with the same "
    "rows, so time stays flat at best; what scales is the work and the bytes of each device",
    "counted FLOPs and bytes are those of the compiled programs, loops multiplied out; loops whose count "
    "depends on the routing are taken at equal loads",
    "compiled steps never ran: memory is the compiler's account; times are FLOPs, bytes through memory and "
    "bytes of collectives over the rates that the vendor states, none of which a program reaches",
    "FLOPs per chip are those that the model needs; the products' time counts blocks that are computed twice "
    "to save memory",
)


def merged(old: Report | None, rows: list[Row], settings: dict[str, dict]) -> Report:
    """The report with these rows in the place of those of the same names.

    Args:
      old: what is there already.
      rows: of one part or of both.
      settings: of the parts that `rows` are of; where those of a part changed, its old rows are dropped.
    """
    before = old.settings if old else {}
    changed = [part for part, facts in settings.items() if before.get(part) != facts]
    names = {row.name for row in rows} | {"work"}

    def keep(name: str) -> bool:
        return name not in names and part_of(name) not in changed

    measures = [measure for measure in (old.measures if old else ()) if keep(row_of(measure.name))]
    measures += [measure for row in rows for measure in row.measures]
    failures = {name: why for name, why in before.get(FAILURES, {}).items() if keep(name)}
    failures |= {row.name: row.failure for row in rows if row.failure}
    return Report(
        name="scaling",
        claim=CLAIM,
        source="measured on virtual CPU devices, and compiled ahead of time for TPUs that are not here",
        settings={**before, **settings, FAILURES: failures},
        baseline="one device with the same rows",
        measures=(*measures, *_work(measures)),
        bar=BAR,
        machine=machine.describe(),
        seconds=0.0,
        notes=NOTES,
        command=f"python -m moejax.bench scaling --json={JSON}",
    )


def _work(measures: list[Measure]) -> list[Measure]:
    """FLOPs of one device over those of eight together, for the same rows: 1 where nothing is done twice."""
    value = {measure.name: measure.value for measure in measures}
    name = lambda layout, n: f"measured {layout}, {n} devices, 16 rows: FLOPs per device"
    found = []
    for layout in ("data", "expert", "data x expert"):
        if name("one", 1) in value and name(layout, 8) in value:
            ratio = value[name("one", 1)] / (8 * value[name(layout, 8)])
            found.append(
                Measure(f"work: {layout}, FLOPs of one / 8 times those of each", ratio, "x", "higher")
            )
    return found


def read(path: str) -> Report | None:
    """A report that was written before; None where there is none."""
    place = pathlib.Path(path)
    if not place.exists():
        return None
    found = json.loads(place.read_text(encoding="utf-8"))
    known = {field.name for field in dataclasses.fields(Report)}
    found = {name: value for name, value in found.items() if name in known}
    pair = lambda value: None if value is None else tuple(value)
    measures = tuple(
        Measure(**{k: pair(v) if isinstance(v, list) else v for k, v in measure.items()})
        for measure in found["measures"]
    )
    kept = {"measures": measures, "bar": BAR, "notes": tuple(found["notes"])}
    return Report(**found | kept | {"machine": machine.Machine(**found["machine"])})


def run(part: str, size: str, names: str, json_path: str | None) -> Report:
    """Run the parts; with a path, the file has every row as soon as it is known.

    Args:
      part: measured | compiled | all.
      size: "" or tiny.
      names: topologies, with commas between.
      json_path: what is there already is kept.
    """
    begin = time.monotonic()
    report = read(json_path) if json_path else None
    keep = lambda report: write(report, pathlib.Path(json_path)) if json_path else None
    if part in ("measured", "all"):
        cfg = measured.tiny() if size else measured.Settings()
        report = merged(
            report, measured.rows(cfg, measured.corpus(cfg)), {"measured": measured.describe(cfg)}
        )
        keep(report)
    if part in ("compiled", "all"):
        recipe = compiled.tiny if size else compiled.large
        settings = {"compiled": compiled.describe(recipe(16))}
        for row in compiled.rows(compiled.slices(names), recipe):
            report = merged(report, [row], settings)
            keep(report)
    return dataclasses.replace(report, seconds=time.monotonic() - begin)


def define(values: flags.FlagValues) -> None:
    """The flags of the benchmark."""
    flags.DEFINE_enum("part", "all", ["measured", "compiled", "all"], "what to run", flag_values=values)
    flags.DEFINE_enum("size", "", ["", "tiny"], "tiny: a small model", flag_values=values)
    flags.DEFINE_string("slices", SLICES, "TPU topologies to compile for", flag_values=values)
    flags.DEFINE_string("json", None, "the report, which is added to", flag_values=values)
    flags.DEFINE_boolean(
        "pages",
        False,
        f"run nothing, write {PAGE} and the tables of {README} from the report",
        flag_values=values,
    )


def main(call: Call) -> None:
    """Flags to a run of the benchmark, or to its pages."""
    values = {name: call.flags[name].value for name in ("part", "size", "slices", "json")}
    if not call.flags["pages"].value:
        finish(run(values["part"], values["size"], values["slices"], values["json"]), values["json"])
        return
    report = read(values["json"] or JSON)
    if report is None:
        raise UsageError(f"{values['json'] or JSON} is not there; make it with --json and --part")
    pathlib.Path(PAGE).write_text(scaling_page.page(report), encoding="utf-8")
    readme = pathlib.Path(README)
    text = scaling_page.into(readme.read_text(encoding="utf-8"), scaling_page.tables(report))
    readme.write_text(text, encoding="utf-8")


PROGRAM = Program("python -m moejax.bench scaling", SUMMARY, define, main, takes_config=False)
