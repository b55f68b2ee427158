"""`python -m moejax verify`: whether a model is whole."""

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import flags

from moejax.config import Run
from moejax.errors import CheckpointError, MoejaxError
from moejax.flags import Call, Program
from moejax.model_files import inspect

SUMMARY = """
Check that a model is whole: every file, its hash where there is one, and every tensor against what the config
declares. Ends with 66 if anything is not.

    python -m moejax verify runs/default
    python -m moejax verify ~/models/Qwen3-30B-A3B --values
"""
VALUE_BYTES = 64 << 20  # of a tensor that are looked at together


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    what: str
    good: bool
    note: str

    def __str__(self) -> str:
        return f"{'ok ' if self.good else 'BAD'} {self.what}: {self.note}"


def define(values: flags.FlagValues) -> None:
    """The flags of the command."""
    inspect.define_model(values)
    flags.DEFINE_boolean("values", False, "read every tensor, and look for NaN and Inf", flag_values=values)


def run(call: Call) -> None:
    """Print a line per check.

    Raises:
      CheckpointError: something is not whole.
    """
    path = inspect.place(call.flags.model, call.flags.offline)
    bad = 0
    for finding in findings(path, call.flags.values):
        print(finding, flush=True)
        bad += not finding.good
    if bad:
        raise CheckpointError(f"{path} is not whole: {bad} of the checks above failed; get those files again")
    print(f"{path} is whole")


def findings(path: Path, values: bool = False) -> Iterator[Finding]:
    """What is found about the model at `path`, check by check.

    Args:
      values: also read every tensor.
    """
    from moejax.model_io import Kind, kind_of

    kind = kind_of(path)
    if kind is Kind.MOEJAX:
        yield from _own_directory(path)
    elif kind is Kind.HF:
        yield from _hub_directory(path, values)
    else:
        yield from _gguf_file(path, values)


def _check(what: str, check: Callable[[], str]) -> Finding:
    """`check` says in what way it is good, or raises."""
    try:
        return Finding(what, True, check())
    except MoejaxError as error:
        return Finding(what, False, str(error))


def _own_directory(path: Path) -> Iterator[Finding]:
    """Of a run or of `moejax.save`. Steps that were set aside are named, but a run can go on without them."""
    from moejax import saved_model
    from moejax.training.step_store import verify_run

    config = saved_model.read_config(path)
    is_run = isinstance(config, Run)
    yield Finding("config.json", True, f"{'run' if is_run else 'model'} of {config.model.num_layers} layers")
    yield _check("tokenizer", lambda: _tokenizer(saved_model.read_origin(path)[0]))
    reports = verify_run(path)
    for report in reports:
        name = f"checkpoints/{report.name}"
        if report.problems:
            problems = "; ".join(map(str, report.problems))
            aside = report.name != str(report.step)
            yield Finding(name, aside, f"{'set aside as damaged: ' if aside else ''}{problems}")
        else:
            yield _check(name, lambda report=report: _tensors_of_step(path, report.step, config.model))
    if not any(report.name == str(report.step) for report in reports):
        yield Finding("checkpoints", False, "there is none; train until one is saved")


def _tensors_of_step(path: Path, step: int, m) -> str:
    """Compare the manifest of a step with the parameters that the config declares."""
    from moejax import specs as sp
    from moejax.model import forward as decoder
    from moejax.training import leaves, manifest
    from moejax.training.step_store import StepStore

    content = manifest.read(StepStore(path).path(step))
    wanted = leaves.describe(leaves.named_leaves({"params": sp.shapes(decoder.specs(m))}))
    different = leaves.diff([t for t in content.tensors if t.name.startswith("params/")], wanted)
    if different:
        raise CheckpointError("; ".join(different))
    return f"{len(content.files)} files with their hashes, {len(wanted)} parameters as declared"


def _hub_directory(path: Path, values: bool) -> Iterator[Finding]:
    from moejax.interop import json_file, safe_files
    from moejax.interop.hf import directory
    from moejax.interop.safetensors.source import SafetensorsDir
    from moejax.interop.tokenizer import hf as hub_tokenizer

    for file in sorted(path.iterdir()):
        if file.suffix in (".safetensors", ".json"):
            yield _check(file.name, functools.partial(_file, path, file.name))

    def describe():
        config = json_file.read_json(safe_files.inside(path, "config.json"))
        return directory.describe(config, str(path / "config.json"))

    about_text = [name for name in hub_tokenizer.FILES if name != "generation_config.json"]
    has_text = any((path / name).exists() for name in about_text)
    yield _check("tokenizer", lambda: _tokenizer(hub_tokenizer.read(path) if has_text else None))
    yield from _foreign_tensors(describe, lambda: SafetensorsDir(path), values)


def _gguf_file(path: Path, values: bool) -> Iterator[Finding]:
    from moejax.interop.gguf.architectures import hub_model
    from moejax.interop.gguf.source import GgufFile
    from moejax.interop.hf import directory
    from moejax.interop.tokenizer import gguf as gguf_tokenizer

    yield _check(path.name, lambda: f"{len(GgufFile(path).tensors)} tensors that fill the file")
    yield _check("tokenizer", lambda: _tokenizer(gguf_tokenizer.read(GgufFile(path).metadata, str(path))))
    yield from _foreign_tensors(
        lambda: directory.describe(hub_model(path)[0], str(path)), lambda: hub_model(path)[1], values
    )


def _foreign_tensors(describe, open_source, values: bool) -> Iterator[Finding]:
    """Whether config and tensors are those of one model; each is opened once for all checks."""
    described, source = functools.cache(describe), functools.cache(open_source)

    def tensors() -> str:
        from moejax.model import forward as decoder

        family, m = described().family, described().model
        family.tensor_map(m).check(family.view(source()), m, decoder.specs(m))
        return f"all {len(source().names()):,} are those that the config declares"

    config = lambda: f"{described().family.model_type}, {described().model.num_layers} layers"
    names = lambda: f"{len(source().names()):,} tensors, each in one place"
    found = [_check("config", config), _check("files together", names)]
    if all(finding.good for finding in found):
        found.append(_check("tensors", tensors))
    yield from found
    if values and found[-1].good:
        for name in source().names():
            finding = _check(f"values of {name}", functools.partial(_values, source(), name))
            if not finding.good:
                yield finding
        yield Finding("values", True, f"all {len(source().names()):,} tensors were read")


def _values(source, name: str) -> str:
    info = source.info(name)
    row_bytes = math.prod(info.shape[1:]) * info.dtype.itemsize
    rows = max(VALUE_BYTES // max(row_bytes, 1), 1)
    for first in range(0, info.shape[0] if info.shape else 1, rows):
        part = source.read(name, (slice(first, min(first + rows, info.shape[0])),) if info.shape else ())
        if not np.issubdtype(part.dtype, np.integer) and not np.isfinite(part).all():
            raise CheckpointError(f"{info.file}: {np.sum(~np.isfinite(part)):,} values are not finite")
    return "finite"


def _file(root: Path, name: str) -> str:
    """Check one file of a directory by itself."""
    from moejax.interop import json_file, safe_files
    from moejax.interop.safetensors.header import read_header

    path = safe_files.inside(root, name)
    if name.endswith(".safetensors"):
        note = f"{len(read_header(path)):,} tensors that fill the file"
    elif name == "tokenizer.json":  # has a check of its own
        note = inspect.size(path.stat().st_size)
    else:
        note = f"{len(json_file.read_json(path))} entries"
    return note + _hash(path)


def _hash(path: Path) -> str:
    """Compare a file of the hub's cache with its name, which is its hash there.

    Raises:
      CheckpointError: it is another content.
    """
    if path.parent.name != "blobs":
        return ""
    if re.fullmatch(r"[0-9a-f]{64}", path.name):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", path.name):  # as git has it
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return ""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != path.name:
        raise CheckpointError(f"{path} has the {digest.name} {digest.hexdigest()}; get it again")
    return f", {digest.name} as in the hub"


def _tokenizer(text) -> str:
    return f"{text.vocab:,} tokens" if text else "there is none; prompts are lists of ids"


PROGRAM = Program("python -m moejax verify", SUMMARY, define, run, takes_config=False)
