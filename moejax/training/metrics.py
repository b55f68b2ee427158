"""What a run writes down about itself: `metrics.jsonl` and TensorBoard events.

`metrics.jsonl` holds one JSON object per line, `{"step": 120, "train/loss": 3.41, ...}`, and is always
valid JSON: a number that is not finite is written as null, and the line's `nonfinite` says which it was.
A line goes to the kernel in one write, so a killed process loses nothing that it logged; what was flushed
survives a power cut too.
"""

import importlib
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIR = "tensorboard"
RESERVED = ("step", "nonfinite")

log = logging.getLogger(__name__)


def encode(step: int, metrics: Mapping[str, Any]) -> str:
    """One line of `metrics.jsonl`; scalars are exact, arrays keep six significant digits.

    Raises:
      ValueError: a metric is named like a field of the line itself.
    """
    record: dict[str, Any] = {"step": int(step)}
    nonfinite: dict[str, str] = {}
    for name, value in metrics.items():
        if name in RESERVED:
            raise ValueError(f"a metric is named {name!r}, a field of every line; name it 'module/{name}'")
        array = np.asarray(value)
        record[name] = _plain(array)
        if not np.isfinite(array.astype(np.float64)).all():
            nonfinite[name] = "array" if array.ndim else str(float(array))
    if nonfinite:
        record["nonfinite"] = nonfinite
    return json.dumps(record, allow_nan=False, separators=(", ", ": "))


def _plain(array: np.ndarray) -> Any:
    """Numbers and nested lists that JSON knows; null for what is not finite."""
    if array.ndim:
        return [_plain(row) if row.ndim else _six_digits(float(row)) for row in array]
    if array.dtype.kind in "iub":
        return int(array)
    value = float(str(array))  # the shortest decimal that reads back as the same float32 or float64
    return value if math.isfinite(value) else None


def _six_digits(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def decode(line: bytes) -> dict[str, Any] | None:
    """The record of one line, or None for a torn or foreign line."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and type(record.get("step")) is int and line.endswith(b"\n")
    return record if whole else None


def read(run_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Every whole record of a run's `metrics.jsonl`, in file order; empty without the file."""
    path = pathlib.Path(run_dir) / METRICS_FILE
    if not path.is_file():
        return []
    with path.open("rb") as lines:
        return [record for line in lines if (record := decode(line)) is not None]


def series(records: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [S] and values [S] of a scalar metric; a null becomes NaN, an array is left out."""
    found = [(record["step"], record[name]) for record in records if name in record]
    found = [(step, value) for step, value in found if value is None or isinstance(value, int | float)]
    return np.array([step for step, _ in found], int), np.array([value for _, value in found], float)


def truncate(path: pathlib.Path, last_step: int | None) -> None:
    """Drop torn lines and every record after `last_step` (all records when it is None), atomically."""
    if not path.exists():
        return
    part = path.with_suffix(".jsonl.part")
    with path.open("rb") as lines, part.open("wb") as kept:
        for line in lines:
            record = decode(line)
            if record is not None and last_step is not None and record["step"] <= last_step:
                kept.write(line)
        kept.flush()
        os.fsync(kept.fileno())
    os.replace(part, path)


class MetricsWriter:
    """Appends the metrics of each step to `metrics.jsonl` and to TensorBoard.

    Neither ever stops a run: a full disk or a broken tracker is reported once, and training goes on.

    Args:
      run_dir: directory of the run; made if missing.
      resumed_step: the step that was restored, or None for a new run. Records after it are dropped,
        so that a run that was cut and resumed still has each step once.
      tensorboard: also write TensorBoard events (scalars only; arrays stay in the JSON lines).
    """

    def __init__(self, run_dir: str | os.PathLike, resumed_step: int | None = None, tensorboard: bool = True):
        run_dir = pathlib.Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / METRICS_FILE
        truncate(path, resumed_step)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._sinks = {"metrics.jsonl": self._append}
        if tensorboard:
            self._sinks["TensorBoard"] = _TensorBoard(run_dir / TENSORBOARD_DIR, resumed_step)
        self._failed: set[str] = set()
        if tensorboard:  # slow where torch is installed, so before the first step and not within it
            self._guard("TensorBoard", importlib.import_module, "tensorboardX.event_file_writer")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of one step; names as in `train/loss`, values numbers or arrays."""
        for name, sink in self._sinks.items():
            self._guard(name, sink, step, metrics)

    def flush(self) -> None:
        """Make everything written so far survive a power cut; worth calling with each checkpoint."""
        self._guard("metrics.jsonl", os.fsync, self._fd)

    def close(self) -> None:
        """Flush and close; the writer is not used afterwards."""
        self.flush()
        os.close(self._fd)
        if "TensorBoard" in self._sinks:
            self._guard("TensorBoard", self._sinks["TensorBoard"].close)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def _append(self, step: int, metrics: Mapping[str, Any]) -> None:
        data = (encode(step, metrics) + "\n").encode()
        size = os.fstat(self._fd).st_size
        written = os.write(self._fd, data)
        if written < len(data):  # a full disk takes a part: give it back, so that the next line starts clean
            os.ftruncate(self._fd, size)
            raise OSError(f"only {written} of {len(data)} bytes were written; the disk is probably full")

    def _guard(self, name: str, act, *args) -> None:
        """Run a sink; whatever breaks in it costs one warning, never the run."""
        try:
            act(*args)
        except Exception as error:
            if name not in self._failed:
                self._failed.add(name)
                log.warning("%s is not written (%s: %s); training goes on", name, type(error).__name__, error)
        else:
            if name in self._failed:
                self._failed.discard(name)
                log.warning("%s is written again", name)


class _TensorBoard:
    """Scalars as TensorBoard events, through tensorboardX's synchronous writer.

    Its queue and thread are avoided: once that thread has died on a full disk, the queue blocks for good.
    """

    def __init__(self, directory: pathlib.Path, resumed_step: int | None):
        self._directory = directory
        self._first_step = 0 if resumed_step is None else resumed_step + 1
        self._writer = None

    def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2

        scalars = {name: float(value) for name, value in metrics.items() if not np.ndim(value)}
        values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        summary = summary_pb2.Summary(value=values)
        writer = self._open()
        writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()

    def _open(self):
        """The event file, opened at the first write; it makes TensorBoard forget later steps."""
        if self._writer is None:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2

            self._directory.mkdir(parents=True, exist_ok=True)
            writer = EventsWriter(str(self._directory / "events"), filename_suffix=f".{os.getpid()}")
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            first = event_pb2.Event(wall_time=time.time(), step=self._first_step, session_log=start)
            writer.write_event(first)
            self._writer = writer
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
