"""`serve.py` in processes of its own, and batch files for it."""

import dataclasses
import json
import os
import pathlib
import random
import signal

import jax

import moejax
from moejax.training.data.tokenizer import byte_tokenizer
from tests import quick_compile
from tests.faults import recipe
from tests.faults.trainer import Ended, Process

CONTEXT = 64  # of the model
LONG_BYTES = 10_000_000


@dataclasses.dataclass(frozen=True)
class Server:
    """Starts `serve.py` with one small model."""

    model: pathlib.Path
    cache: pathlib.Path  # of compiled programs

    def start(self, requests, output, *flags: str) -> Process:
        """Start to answer a file."""
        env = dict(os.environ) | {
            "XLA_FLAGS": quick_compile.FLAGS,
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "SOURCE_DATE_EPOCH": "1",
            "PYTHONUNBUFFERED": "1",
        }
        own = (f"--model={self.model}", f"--input={requests}", f"--output={output}", "--exact")
        return Process(["serve.py", *own, *flags], env)

    def __call__(self, requests, output, *flags: str) -> Ended:
        """Start, and wait for the end."""
        return self.start(requests, output, *flags).wait()


def save_model(path) -> None:
    """A model that has every part, untrained."""
    cfg = recipe.config().model
    params = moejax.init(jax.random.key(0), cfg)
    moejax.save(moejax.Model(cfg, params, byte_tokenizer(), CONTEXT), path)


def write_batch(path: pathlib.Path, count: int) -> None:
    """A batch file; one line in nine is wrong."""
    rng = random.Random(1)
    path.write_bytes(b"\n".join(good_line(rng, number) if number % 9 else b"{" for number in range(count)))


def kill_often(serve: Server, requests, output: pathlib.Path, seed: int, kills: int, size: int) -> list[bool]:
    """Kill `kills` processes of one job at random bytes of what they keep, then let it end.

    Each kill has its own part of the `size` bytes of the answers. Returns for each whether it tore a line.
    """
    draw, part = random.Random(seed), output.with_name(f"{output.name}.part")
    torn, place = [], 0
    for number in range(kills):
        place += draw.randint(1, (size - place) // (kills + 1 - number))
        process = serve.start(requests, output, "--resume")
        assert process.wait_until(lambda at=place: part.exists() and part.stat().st_size >= at), (
            process.wait()
        )
        process.send(signal.SIGKILL)
        ended = process.wait()
        assert ended.code == -signal.SIGKILL, ended.output
        os.truncate(part, place)  # as if the kill had come at this very byte
        torn.append(not part.read_bytes().endswith(b"\n"))
    ended = serve(requests, output, "--resume")
    assert ended.code == 0, ended.output
    return torn


def good_line(rng: random.Random, number: int) -> bytes:
    """A line of a batch file that can be answered; some ask for log-probabilities."""
    size = rng.choice((3, 9, 20, 40))
    body = {
        "model": "any",
        "prompt": "".join(rng.choices("def x(y): return\n", k=size)),
        "max_tokens": rng.randint(1, 6),
        "temperature": rng.choice((0, 0.8, 2)),
        "seed": number,
    }
    if number % 7 == 0:
        body |= {"stop": ["e", "\n\n"], "top_p": 0.9, "min_p": 0.01, "logprobs": number % 6}
    return line(f"request-{number}", body)


def line(custom_id, body, url="/v1/completions", method="POST") -> bytes:
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body}).encode()


def bad_lines(custom_id: str, used_id: str) -> list[tuple[bytes, str]]:
    """(line, code of its error) of every kind of damage; `used_id` is of a line before."""
    hi = {"prompt": "hi"}
    return [
        (b'{"custom_id": "a", "method"', "invalid_json"),
        (b"\xff\xfe\x00", "invalid_json"),
        (b"[" * 5000, "invalid_json"),
        (b"null", "invalid_json"),
        (line(used_id, hi), "duplicate_id"),
        (line(7, hi), "invalid_type"),
        (line(custom_id, hi, url="/v1/embeddings"), "invalid_value"),
        (line(custom_id, hi, method="GET"), "invalid_value"),
        (line(custom_id, {"messages": []}, url="/v1/chat/completions"), "invalid_value"),
        (line(custom_id, []), "invalid_type"),
        (line(custom_id, {}), "missing_parameter"),
        (line(custom_id, hi | {"n": 10**9}), "unsupported_value"),
        (line(custom_id, hi | {"n": -1}), "unsupported_value"),
        (line(custom_id, hi | {"stream": True}), "unsupported_value"),
        (line(custom_id, hi | {"max_tokens": 0}), "invalid_value"),
        (line(custom_id, hi | {"max_tokens": 1e308}), "invalid_type"),
        (line(custom_id, hi | {"temperature": 2.5}), "invalid_value"),
        (line(custom_id, hi | {"temperature": float("nan")}), "invalid_value"),
        (line(custom_id, hi | {"temprature": 1}), "unknown_parameter"),
        (line(custom_id, hi | {"stop": list("abcde")}), "invalid_value"),
        (line(custom_id, {"prompt": ""}), "invalid_value"),
        (line(custom_id, {"prompt": [1, 10**9]}), "invalid_value"),
        (line(custom_id, {"prompt": "x" * CONTEXT}), "context_length_exceeded"),
        (line(custom_id, {"prompt": [1] * CONTEXT}), "context_length_exceeded"),
        (line(custom_id, {"prompt": "a\ud800b"}), "invalid_value"),
    ]


def huge_line(custom_id: str) -> tuple[bytes, str]:
    return line(custom_id, {"prompt": "x" * LONG_BYTES}), "context_length_exceeded"
