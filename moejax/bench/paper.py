"""One published result as a program: what is claimed, what is compared, and how it is measured."""

import dataclasses
import importlib
import pathlib
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moejax.analysis import machine
from moejax.bench import papers
from moejax.bench.report import Bar, Measure, Report
from moejax.config import require
from moejax.records import suggest

SIZES = ("tiny", "default", "full", "gpu")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the user brings along."""

    text: tuple[str, ...] = ()  # files, each a domain of text; none = what the machine has
    trace: tuple[str, ...] = ()  # files of requests; none = drawn ones
    cache: str | None = ""  # where trained models are kept; "" = the user's cache, None = nowhere


@dataclasses.dataclass(frozen=True)
class Curve:
    """y over x, with a band from low to high if there are any."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @classmethod
    def of_seeds(cls, name: str, x: Sequence[float], y_RX) -> "Curve":
        """The mean over seeds R, with the smallest and the largest."""
        y, low, high = (tuple(map(float, of(np.asarray(y_RX), axis=0))) for of in (np.mean, np.min, np.max))
        return cls(name, tuple(map(float, x)), y, low, high)


@dataclasses.dataclass(frozen=True)
class Chart:
    """Curves that share their axes."""

    title: str
    x_name: str
    y_name: str
    curves: tuple[Curve, ...]
    log_x: bool = False


@dataclasses.dataclass(frozen=True)
class Findings:
    """What one run of a program found."""

    measures: tuple[Measure, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # beside those of the size
    notes: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()


@dataclasses.dataclass(frozen=True)
class Paper:
    """A claim and the program that looks whether it holds.

    The bars are constants of the program: they are there before a result is.
    """

    title: str  # with authors' year and arXiv id
    claim: str
    baseline: str
    bars: tuple[Bar, ...]
    sizes: Mapping[str, Any]  # settings by SIZES
    measure: Callable[[Any, Inputs], Findings]

    def run(self, name: str, size: str = "default", inputs: Inputs = Inputs()) -> tuple[Report, Findings]:
        """Measure, and put everything that a reader needs around the figures."""
        start = time.monotonic()
        findings = self.measure(self.sizes[size], inputs)
        settings = {"size": size} | dataclasses.asdict(self.sizes[size]) | dict(findings.settings)
        report = Report(
            name=name,
            claim=self.claim,
            source=self.title,
            settings=settings,
            baseline=self.baseline,
            measures=findings.measures,
            bar=self.bars,
            machine=machine.describe(),
            seconds=time.monotonic() - start,
            notes=findings.notes,
            command=_command(name, size, inputs),
        )
        return report, findings


def names() -> tuple[str, ...]:
    """Of all programs."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(papers.__path__)))


def find(name: str) -> Paper:
    """The program of that name.

    Raises:
      UsageError: there is none.
    """
    known = names()
    require(name in known, f"there is no program {name!r}{suggest(name, known)}; known: {', '.join(known)}")
    return importlib.import_module(f"{papers.__name__}.{name}").PAPER


def _command(name: str, size: str, inputs: Inputs) -> str:
    """As anyone can type it; files by their names alone."""
    words = ["python -m moejax.bench run", name] + [f"--size={size}"] * (size != "default")
    for flag in ("text", "trace"):
        files = [pathlib.Path(path).name for path in getattr(inputs, flag)]
        words += [f"--{flag}={','.join(files)}"] if files else []
    return " ".join(words)
