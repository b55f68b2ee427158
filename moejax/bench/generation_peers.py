"""Whoever writes a batch beside us: processes of their own, asked in lines of JSON."""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import subprocess
from collections.abc import Callable, Sequence

LLAMA, TRANSFORMERS = "llama.cpp", "transformers"
SHORT = "bfloat16"
FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one task."""

    prefill: float  # seconds until every prompt had its first token
    decode: float  # seconds for the rest
    tokens: Sequence[Sequence[int]]  # that were written

    @property
    def seconds(self) -> float:
        return self.prefill + self.decode


Prompts = list[list[int]]
Contestant = Callable[[Prompts, int], Outcome]  # prompts, new tokens of each


class Peers:
    """Other programs, each in a process of its own."""

    def __init__(self, notes: list[str]):
        self.contestants: dict[str, Contestant] = {}
        self.versions: dict[str, str] = {}
        self._notes = notes
        self._processes: list[subprocess.Popen] = []

    def add_llama(self, python: str, path: str) -> None:
        """llama.cpp, with the GGUF file at `path`."""
        ask = self._start(LLAMA, python, "llama_cpp_generation.py", path)
        if ask:
            self.contestants[LLAMA] = ask

    def add_transformers(self, python: str, path: str, batches: Sequence[int]) -> None:
        """transformers, with the directory at `path`, in two types and batches of these sizes."""
        ask = self._start(TRANSFORMERS, python, "transformers_generation.py", path)
        kinds = [("float32", TRANSFORMERS), (SHORT, f"{TRANSFORMERS} in {SHORT}")]
        for (dtype, name), rows in itertools.product(kinds, batches if ask else ()):
            self.contestants[f"{name}, batch {rows}"] = functools.partial(ask, dtype=dtype, batch=rows)

    def _start(self, name: str, python: str, program: str, path: str):
        command = [python, "-P", str(FOLDER / program), path, str(os.cpu_count())]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._processes.append(process)
        about = process.stdout.readline()
        if not about:
            self._notes.append(f"{name} was not measured: {' '.join(command[:3])} failed")
            return None
        self.versions |= json.loads(about)

        def ask(prompts: Prompts, new_tokens: int, **more) -> Outcome:
            process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens} | more) + "\n")
            process.stdin.flush()
            return Outcome(**json.loads(process.stdout.readline()))

        return ask

    def close(self) -> None:
        """Let the programs end."""
        for process in self._processes:
            process.communicate()
