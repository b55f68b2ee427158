"""`python -m moejax.bench list | run NAME... | all | table`: the programs of published results."""

import os
import pathlib
import traceback

from absl import flags

from moejax.bench import paper, plot, results_page, run
from moejax.config import require
from moejax.errors import MoejaxError
from moejax.flags import Call, Program

ACTIONS = ("list", "run", "all", "table")
DEVICES = 8  # virtual ones on CPU: seeds side by side, and what needs a mesh
QUICK = "--xla_backend_optimization_level=0"
SUMMARY = """
Published results as programs: what was claimed, what is measured here, and whether it holds.

    python -m moejax.bench list
    python -m moejax.bench run rmoe exflow --text=plays.txt,maths.jsonl
    python -m moejax.bench all --size=tiny
    python -m moejax.bench table
"""


def program(action: str, names: tuple[str, ...]) -> Program:
    """The front door of one action."""

    def start(call: Call) -> None:
        require(
            bool(names) == (action == "run"), f"{action} {'needs' if action == 'run' else 'takes no'} names"
        )
        {"list": _list, "run": _run, "all": _run, "table": _table}[action](call, names or paper.names())

    return Program(f"python -m moejax.bench {action}", SUMMARY, _define, start, takes_config=False)


def _define(values: flags.FlagValues) -> None:
    text = flags.DEFINE_string
    flags.DEFINE_enum("size", "default", paper.SIZES, "of the experiment", flag_values=values)
    flags.DEFINE_list("text", [], "files, each a domain of text", flag_values=values)
    flags.DEFINE_list("trace", [], "files of requests", flag_values=values)
    text("cache", "", "where trained models are kept; none = nowhere", flag_values=values)
    text("results", "results", "folder of reports", flag_values=values)
    text("page", "docs/results.md", "that `table` writes", flag_values=values)


def _list(call: Call, names: tuple[str, ...]) -> None:
    for name in names:
        print(f"{name:<30} {paper.find(name).claim}")


def _run(call: Call, names: tuple[str, ...]) -> None:
    """One after the other; what breaks one program does not stop the next."""
    if call.flags["size"].value == "tiny":  # a tiny program takes longer to compile well than to run
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
    import jax

    programs = {name: paper.find(name) for name in names}
    if jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", DEVICES)
    flag = {name: call.flags[name].value for name in ("size", "text", "trace", "cache", "results")}
    cache = None if flag["cache"] == "none" else flag["cache"]
    inputs = paper.Inputs(tuple(flag["text"]), tuple(flag["trace"]), cache)
    broken = {}
    for name, program in programs.items():
        try:
            report, findings = program.run(name, flag["size"], inputs)
        except Exception as error:
            if len(programs) == 1:
                raise
            if not isinstance(error, MoejaxError):
                traceback.print_exc()
            broken[name] = error
            continue
        print(run.table(report), end="\n\n", flush=True)
        if flag["size"] != "tiny":  # its figures mean nothing
            keep(report, findings, pathlib.Path(flag["results"]))
        jax.clear_caches()
    require(not broken, "\n".join(f"{name}: {error}" for name, error in broken.items()))


def keep(report, findings: paper.Findings, folder: pathlib.Path) -> None:
    """The report and its picture."""
    run.write(report, folder / f"{report.name}.json")
    picture = folder / f"{report.name}.svg"
    drawn = plot.draw(report, findings.charts, picture)
    print(f"drawn in {picture}" if drawn else "no picture: pip install 'moejax[plot]'")


def _table(call: Call, names: tuple[str, ...]) -> None:
    page = pathlib.Path(call.flags["page"].value)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(results_page.page(pathlib.Path(call.flags["results"].value)), encoding="utf-8")
    print(f"written to {page}")
