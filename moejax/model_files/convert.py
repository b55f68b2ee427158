"""`python -m moejax convert`: a model of one kind as one of another."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags

from moejax.config import require
from moejax.flags import Call, Program
from moejax.model_files import inspect

SUMMARY = """
Write a model in another form. The target appears whole or not at all, and nothing is ever overwritten.

    python -m moejax convert runs/default models/mine              the layout of the Hugging Face hub
    python -m moejax convert smollm2 smollm2-hf --dtype=bfloat16
    python -m moejax convert models/mine mine.gguf --tensor_type=Q8_0
    python -m moejax convert models/mine mine --format=moejax
"""


def define(values: flags.FlagValues) -> None:
    """The flags of the command."""
    text = flags.DEFINE_string
    where = "may be given without --"
    text("source", None, f"directory, GGUF file or name of a model; {where}source=", flag_values=values)
    text("target", None, f"where there is nothing yet; {where}target=", flag_values=values)
    formats = ["hf", "gguf", "moejax"]
    flags.DEFINE_enum("format", None, formats, "by default gguf for *.gguf, else hf", flag_values=values)
    text("family", None, "model_type to write it as, by default that of the source", flag_values=values)
    dtypes = ["float32", "bfloat16"]
    flags.DEFINE_enum("dtype", None, dtypes, "to round a foreign model to", flag_values=values)
    types = ["F32", "BF16", "Q8_0"]
    flags.DEFINE_enum("tensor_type", None, types, "of matrices in a GGUF file", flag_values=values)
    flags.DEFINE_float(
        "max_shard_gib", 5.0, "where the next file of hf begins", lower_bound=1e-6, flag_values=values
    )
    flags.DEFINE_integer(
        "step", None, "which checkpoint of a run, by default the newest", lower_bound=0, flag_values=values
    )
    flags.DEFINE_boolean("offline", False, "look for a name only in the cache of the hub", flag_values=values)


def run(call: Call) -> None:
    """Check the arguments, load, save."""
    values = {name: call.flags[name].value for name in call.flags}
    require(bool(values["target"]), "where to? python -m moejax convert SOURCE TARGET")
    target = Path(values["target"]).expanduser().absolute()
    require(not os.path.lexists(target), f"{target} exists already; choose a path where there is nothing yet")
    require(target.parent.is_dir(), f"there is no directory {target.parent}; make it first")
    form = values["format"] or ("gguf" if target.suffix == ".gguf" else "hf")
    require(
        values["tensor_type"] is None or form == "gguf", "--tensor_type is for GGUF files; give --format=gguf"
    )
    source = inspect.place(values["source"], values["offline"])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # parameters only pass through
    from moejax import model_io

    with progress("reading", lambda: _num_parameters(source)) as tell:
        model = model_io.load(source, dtype=values["dtype"], step=values["step"], progress=tell)
    with progress("writing", lambda: _num_tensors(model, form, values["family"])) as tell:
        model_io.save(
            model,
            target,
            format=form,
            family=values["family"],
            max_shard_bytes=round(values["max_shard_gib"] * 2**30),
            tensor_type=values["tensor_type"],
            progress=tell,
        )
    print(f"done: {target}")


def _num_parameters(source: Path) -> int | None:
    """Of a model, counted as arrays; None if its family is unknown, which loading it will say."""
    from moejax import specs as sp
    from moejax.model import forward as decoder
    from moejax.model_files import contents

    m = contents.read(source).model
    return m and len(sp.leaves(decoder.specs(m)))


def _num_tensors(model, form: str, family: str | None) -> int | None:
    """In the files of the hub; of other forms nobody knows before they are written."""
    from moejax.interop import hub_directory
    from moejax.model import forward as decoder

    if form != "hf":
        return None
    places = hub_directory.family_of(model, family).tensor_map(model.cfg)
    return sum(1 for _ in places.places(model.cfg, decoder.specs(model.cfg)))


@contextlib.contextmanager
def progress(what: str, count: Callable[[], int | None]) -> Iterator[Callable[[str], None] | None]:
    """A bar on standard error if that is a terminal; yields what is to be told of everything that is done.

    Args:
      count: how much there is to do in all; asked only on a terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    name = TextColumn("{task.fields[name]}", markup=False)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), name)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=count(), name="")
        yield lambda name: bar.update(task, advance=1, name=name)


PROGRAM = Program("python -m moejax convert", SUMMARY, define, run, takes_config=False)
