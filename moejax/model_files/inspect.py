"""`python -m moejax inspect`: what a model is, without reading its parameters."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from moejax.config import require
from moejax.flags import Call, Program

SUMMARY = """
Say what a model is, without reading its parameters.

    python -m moejax inspect runs/default
    python -m moejax inspect ~/models/Qwen3-30B-A3B
    python -m moejax inspect model.gguf --json
"""
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def define(values: flags.FlagValues) -> None:
    """The flags of the command."""
    define_model(values)
    flags.DEFINE_boolean("json", False, "print JSON", flag_values=values)


def define_model(values: flags.FlagValues) -> None:
    """The flags by which a model is named."""
    what = "directory, GGUF file or name of a model; may be given without --model="
    flags.DEFINE_string("model", None, what, flag_values=values)
    flags.DEFINE_boolean("offline", False, "look for a name only in the cache of the hub", flag_values=values)


def place(name: str | None, offline: bool) -> Path:
    """Where a model is.

    Raises:
      UsageError: there is none of that name.
    """
    require(bool(name), "which model? give its directory, its GGUF file or its name")
    path = Path(name).expanduser()
    if os.path.lexists(path):
        return path
    from moejax.interop import hub

    return hub.find(name, offline=offline)


def run(call: Call) -> None:
    """Print what the model is."""
    path = place(call.flags.model, call.flags.offline)
    from moejax.model_files import contents

    facts = {"path": str(path), **contents.read(path).facts()}
    print(json.dumps(facts, indent=1) if call.flags.json else "\n".join(lines(facts)))


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The facts as people read them."""
    files, unknown = facts["files"], facts["unknown"]
    for label, value in _rows(facts):
        if value:
            yield f"{label:<12}{value}"
    yield f"{'files':<12}{size(sum(files.values()))} in all"
    for name, num_bytes in files.items():
        yield f"{'':<12}{size(num_bytes):>10}  {name}"
    for reason in unknown:
        yield f"unknown: {reason}"


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    number = lambda name: f"{facts[name]:,}" if facts.get(name) else ""
    yield "path", facts["path"]
    yield "kind", facts["kind"]
    yield "name", facts["name"] or ""
    yield "family", facts["family"] or ""
    active = facts.get("active_parameters", facts["parameters"])
    of_these = f", of which a token passes {active:,}" if active != facts["parameters"] else ""
    yield "parameters", f"{facts['parameters']:,}{of_these}"
    total = max(sum(facts["stored"].values()), 1)
    yield "stored as", ", ".join(f"{name} {_share(n / total)}" for name, n in facts["stored"].items())
    yield "layers", f"{facts['layers']} of width {facts['width']:,}" if "layers" in facts else ""
    yield "experts", "; ".join(f"{e['count']}, {e['per_token']} a token" for e in facts.get("experts", ()))
    yield "vocabulary", number("vocabulary")
    yield "context", f"{number('context')} tokens" if facts["context"] else ""
    yield "tokenizer", _tokenizer(facts["tokenizer"]) if facts["tokenizer"] else ""
    yield "checkpoints", ", ".join(map(str, facts["checkpoints"]))


def _tokenizer(facts: Mapping[str, Any]) -> str:
    begins = f"a text begins with {facts['begin']!r}" if facts["begin"] else "nothing begins a text"
    ends = " or ".join(map(repr, facts["ends"])) or "nothing"
    template = "a chat template" if facts["chat_template"] else "no chat template"
    return f"{facts['tokens']:,} tokens; {begins} and ends with {ends}; {template}"


def _share(x: float) -> str:
    return f"{x:.1%}" if x >= 0.001 else "<0.1%"


def size(num_bytes: int) -> str:
    """`1.50 GiB`."""
    unit = min(max(num_bytes.bit_length() - 1, 0) // 10, len(UNITS) - 1)
    return f"{num_bytes / 1024**unit:.{2 if unit else 0}f} {UNITS[unit]}"


PROGRAM = Program("python -m moejax inspect", SUMMARY, define, run, takes_config=False)
