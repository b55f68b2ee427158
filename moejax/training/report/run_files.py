"""Reads the files of a run directory; what is missing or broken becomes a sentence instead of an error."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from moejax.analysis.routing.trace import RoutingTrace
from moejax.errors import MoejaxError
from moejax.training import metrics
from moejax.training.health import LOAD


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What was found in a run directory; absent files are empty values."""

    name: str
    records: list[dict[str, Any]]  # metrics.jsonl
    config: dict[str, Any]  # config.json
    data: dict[str, Any]  # data.json
    baselines: dict[str, float]  # bits per byte per compressor, from baselines.json
    samples: list[dict[str, Any]]  # samples.jsonl: step, prompt, text
    routing: RoutingTrace | None  # routing.npz
    problems: dict[str, str]  # file name -> why it gave nothing, in words

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [S] and values [S] of a scalar metric; NaN where it was not finite."""
        return metrics.series(self.records, name)

    def scalars(self, name: str) -> list[float]:
        """The finite values of a scalar metric, in the order of the steps."""
        value_S = self.series(name)[1]
        return value_S[np.isfinite(value_S)].tolist()

    @property
    def last_step(self) -> int:
        """The step of the latest record."""
        return max((record["step"] for record in self.records), default=0)

    def setting(self, name: str) -> Any:
        """A setting by its dotted name, such as `train.steps`, or None."""
        return self.settings.get(name)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting of config.json by its dotted name."""
        return flatten(self.config.get("config", {}))

    def loads(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps [S] and finite shares of the tokens [S, L, E]."""
        found = [(r["step"], np.array(r[LOAD], float)) for r in self.records if LOAD in r]
        if len({load.shape for _, load in found}) != 1 or found[0][1].ndim != 2:
            return np.zeros(0, int), np.zeros((0, 0, 0))
        found = [(step, load_LE) for step, load_LE in found if np.isfinite(load_LE).all()]
        return np.array([step for step, _ in found]), np.array([load_LE for _, load_LE in found])


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names to leaves: `{"a": {"b": [1]}}` becomes `{"a.b[0]": 1}`; empty containers are leaves."""
    if isinstance(tree, dict) and tree:
        parts = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and tree and any(isinstance(item, dict | list) for item in tree):
        parts = [(f"{prefix}[{index}]", value) for index, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {name: leaf for key, value in parts for name, leaf in flatten(value, key).items()}


def read(run_dir: str | os.PathLike) -> RunFiles:
    """Everything a report is drawn from."""
    run_dir = pathlib.Path(run_dir)
    problems: dict[str, str] = {}
    config = _json(run_dir / "config.json", problems)
    baselines = _json(run_dir / "baselines.json", problems).get("bits_per_byte", {})
    name = flatten(config.get("config", {})).get("name")
    return RunFiles(
        name=name if isinstance(name, str) and name else run_dir.resolve().name,
        records=_records(run_dir, problems),
        config=config,
        data=_json(run_dir / "data.json", problems),
        baselines={key: bits for key, bits in baselines.items() if isinstance(bits, int | float)},
        samples=_samples(run_dir / "samples.jsonl", problems),
        routing=_trace(run_dir / "routing.npz", problems),
        problems=problems,
    )


def _records(run_dir: pathlib.Path, problems: dict[str, str]) -> list[dict[str, Any]]:
    records = metrics.read(run_dir)
    if not records:
        problems[metrics.METRICS_FILE] = f"{metrics.METRICS_FILE} is missing or holds no whole record."
    return records


def _json(path: pathlib.Path, problems: dict[str, str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(errors="replace"))
    except FileNotFoundError:
        problems[path.name] = f"The run directory has no {path.name}."
        return {}
    except (OSError, ValueError) as error:
        problems[path.name] = f"{path.name} cannot be read ({error})."
        return {}
    if not isinstance(found, dict):
        problems[path.name] = f"{path.name} holds a {type(found).__name__} where an object was expected."
        return {}
    return found


def _samples(path: pathlib.Path, problems: dict[str, str]) -> list[dict[str, Any]]:
    if not path.is_file():
        problems[path.name] = f"The run directory has no {path.name}: no text was sampled."
        return []
    samples = []
    for line in path.read_text(errors="replace").split("\n"):
        try:
            sample = json.loads(line)
        except ValueError:
            continue
        if isinstance(sample, dict):
            samples.append(sample)
    if not samples:
        problems[path.name] = f"{path.name} holds no whole sample."
    return samples


def _trace(path: pathlib.Path, problems: dict[str, str]) -> RoutingTrace | None:
    try:
        return RoutingTrace.load(path)
    except MoejaxError as error:
        problems[path.name] = f"{path.name}: {error}."
        return None
