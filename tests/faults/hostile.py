"""Files made to harm: headers with a few bytes changed, and directories that are traps."""

import io
import json
import os
import pickle
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save, save_file

from tests.interop.safetensors.headers import entry, write

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
INDEX = "model.safetensors.index.json"
BOMB_BYTES = 8 << 20
Spring = Callable[[Path], None]  # makes a trap of a directory
INTERESTING = (
    b"0",
    b"-1",
    b"18446744073709551616",
    b"1e400",
    b"[",
    b"{",
    b'"',
    b"\\u0000",
    b"\xff",
    b"null",
    b"",
)


def mutants(rng: random.Random, count: int) -> Iterator[bytes]:
    """Safetensors files with a damaged header; a few may be as good as before."""
    arrays = {"a.weight": np.ones((4, 3), np.float32), "b": np.arange(7, dtype=np.int16), "c": np.zeros(())}
    good = save(arrays, {"format": "pt"})
    end = 8 + int.from_bytes(good[:8], "little")
    for _ in range(count):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            rng.choice(DAMAGES)(rng, data, min(end, len(data)))
        if rng.random() < 0.5:  # the length of the header as it is now, so that more than that is looked at
            data[:8] = max(len(data) - len(good) + end - 8, 0).to_bytes(8, "little")
        yield bytes(data)


def _flip(rng: random.Random, data: bytearray, end: int) -> None:
    if end:
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, data: bytearray, end: int) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _remove(rng: random.Random, data: bytearray, end: int) -> None:
    start = rng.randrange(end + 1)
    del data[start : start + rng.randint(1, 20)]


def _insert(rng: random.Random, data: bytearray, end: int) -> None:
    start = rng.randrange(end + 1)
    data[start:start] = rng.choice(INTERESTING) * rng.choice((1, 1, 1, 40))


def _repeat(rng: random.Random, data: bytearray, end: int) -> None:
    start = rng.randrange(end + 1)
    data[start:start] = data[start : start + rng.randint(1, 60)]


def _number(rng: random.Random, data: bytearray, end: int) -> None:
    digits = [i for i in range(min(8, end), end) if 48 <= data[i] <= 57]
    if digits:
        at = rng.choice(digits)
        data[at : at + 1] = rng.choice((b"0", b"9", b"4294967296", b"9223372036854775807", b"-1", b"1.5"))


def _length(rng: random.Random, data: bytearray, end: int) -> None:
    if len(data) >= 8:
        data[:8] = rng.choice((0, 1, 2, 7, 10**8, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")


DAMAGES = (_flip, _flip, _cut, _remove, _insert, _repeat, _number, _number, _length)


class Touch:
    """Unpickled, it leaves a file."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def traps(root: Path, canary: Path) -> None:
    """One directory below `root` per trap; whoever falls into one makes `canary`."""
    secret = root.parent / "secret.json"
    secret.write_text(json.dumps(CONFIG))
    for name, spring in {**CONFIG_TRAPS, **INDEX_TRAPS, **HEADER_TRAPS, **TOKENIZER_TRAPS}.items():
        path = root / name
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(CONFIG))
        spring(path)
    pickled = pickle.dumps(Touch(canary))
    for name, file in (("pickle_bin", "pytorch_model.bin"), ("pickle_safetensors", "model.safetensors")):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(CONFIG))
        (root / name / file).write_bytes(pickled)
    _tar(root / "tar" / "model.safetensors", canary)
    (root / "tar" / "config.json").write_text(json.dumps(CONFIG))
    _code(root / "auto_map", canary)


def _tar(path: Path, canary: Path) -> None:
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name in (str(canary), f"../../{canary.name}"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())


def _code(path: Path, canary: Path) -> None:
    """A family that only its own Python file knows."""
    path.mkdir()
    auto = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}
    config = {**CONFIG, "model_type": "trap", "auto_map": auto, "trust_remote_code": True}
    (path / "config.json").write_text(json.dumps(config))
    (path / "trap.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    (path / "__init__.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")


def text(file: str, content: bytes | Callable[[], bytes]) -> Spring:
    """A trap that is the content of one file."""

    def spring(path: Path) -> None:
        (path / file).write_bytes(content if isinstance(content, bytes) else content())

    return spring


def link(file: str, target: str) -> Spring:
    """A trap that is a link."""

    def spring(path: Path) -> None:
        (path / file).unlink(missing_ok=True)
        (path / file).symlink_to(target)

    return spring


def pipe(file: str) -> Spring:
    """A trap that waits for a writer."""

    def spring(path: Path) -> None:
        (path / file).unlink(missing_ok=True)
        os.mkfifo(path / file)

    return spring


def config(**changes) -> Spring:
    return text("config.json", json.dumps({**CONFIG, **changes}).encode())


def index(weight_map, file: str = "x.safetensors") -> Spring:
    """An index beside, and above, real tensors."""

    def spring(path: Path) -> None:
        for place in (path, path.parent):
            save_file({"a": np.ones(2, np.float32)}, place / file)
        (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return spring


def header(content: bytes | dict, num_bytes: int = 24, length: int | None = None) -> Spring:
    """A trap that is the header of the only file."""

    def spring(path: Path) -> None:
        write(path / "model.safetensors", content, num_bytes, length)

    return spring


def both(*springs: Spring) -> Spring:
    """One trap after the other."""

    def spring(path: Path) -> None:
        for own in springs:
            own(path)

    return spring


TENSORS = header({"a": entry()})  # that are fine as far as they go
MANY_EXPERTS = {"model_type": "mixtral", "num_experts_per_tok": 2}
CONFIG_TRAPS = {
    "config_deep": text("config.json", b'{"model_type":' + b"[" * BOMB_BYTES),
    "config_wide": text("config.json", b'{"model_type":[' + b"[]," * (BOMB_BYTES // 3) + b"0]}"),
    "config_keys": text("config.json", lambda: json.dumps(dict.fromkeys(map(str, range(500_000)))).encode()),
    "config_digits": text("config.json", b'{"model_type":' + b"9" * BOMB_BYTES + b"}"),
    "config_quotes": text("config.json", b'{"' + rb"\"" * (BOMB_BYTES // 2)),
    "config_twice": text("config.json", b'{"model_type": "llama", "model_type": "llama"}'),
    "config_nan": text("config.json", b'{"model_type": "llama", "rms_norm_eps": NaN}'),
    "config_large": lambda path: os.truncate(path / "config.json", 10**12),
    "config_utf16": text("config.json", json.dumps(CONFIG).encode("utf-16")),
    "config_empty": text("config.json", b""),
    "config_link_out": link("config.json", "../../secret.json"),
    "config_link_device": link("config.json", "/dev/zero"),
    "config_link_loop": link("config.json", "config.json"),
    "config_pipe": pipe("config.json"),
    "config_layers": config(num_hidden_layers=10**12),
    "config_layers_many": config(num_hidden_layers=10**6),
    "config_tensors": both(TENSORS, config(**MANY_EXPERTS, num_hidden_layers=1000, num_local_experts=10**12)),
    "config_width": config(hidden_size=10**18),
    "config_vocab": config(vocab_size=10**18),
    "config_heads": config(num_attention_heads=2**62, head_dim=2**62),
    "config_zero_heads": config(num_attention_heads=0),
    "config_negative": config(intermediate_size=-5),
    "config_experts": config(**MANY_EXPERTS, num_local_experts=10**20),
    "config_type": config(model_type=["llama"]),
    "config_type_object": config(model_type={"a": 1}),
    "config_surrogate": text("config.json", b'{"model_type": "\\ud800"}'),
}
INDEX_TRAPS = {
    "index_up": index({"a": "../x.safetensors"}),
    "index_absolute": index({"a": "/x.safetensors"}),
    "index_below": index({"a": "y/x.safetensors"}),
    "index_backslash": index({"a": "..\\x.safetensors"}),
    "index_nul": index({"a": "x.safetensors\0.safetensors"}),
    "index_long": index({"a": "x" * 5000 + ".safetensors"}),
    "index_missing": index({"a": "y.safetensors"}),
    "index_list": index(["a"]),
    "index_number": index({"a": 1}),
    "index_other": index({"b": "x.safetensors"}),
    "index_many": index({str(i): f"{i}.safetensors" for i in range(30_000)}),
    "index_deep": text(INDEX, b'{"weight_map":' + b"[" * BOMB_BYTES),
    "index_link_out": link(INDEX, "../../secret.json"),
    "index_shard_link": lambda path: (
        index({"a": "z.safetensors"})(path),
        link("z.safetensors", "../x.safetensors")(path),
    ),
    "index_shard_pipe": lambda path: (index({"a": "z.safetensors"})(path), pipe("z.safetensors")(path)),
}
HEADER_TRAPS = {
    "header_lists": header(b'{"a":[' + b"[]," * (BOMB_BYTES // 3)),
    "header_deep": header(b'{"a":' + b"[" * BOMB_BYTES),
    "header_quotes": header(b'{"' + rb"\"" * (BOMB_BYTES // 2)),
    "header_metadata": header(b'{"__metadata__":{"' + rb"\"" * (BOMB_BYTES // 2)),
    "header_spaces": header(b"{" + b" " * BOMB_BYTES),
    "header_same_bytes": header({str(i): entry() for i in range(10_000)}),
    "header_length": header({"a": entry()}, length=2**64 - 1),
    "header_dims": header({"a": entry(shape=[2**32, 2**32, 0, 6], offsets=(0, 0))}, num_bytes=0),
    "header_overflow": header({"a": entry("U8", shape=[2**62, 4, 2**62])}),
    "header_pipe": pipe("model.safetensors"),
    "header_link_out": link("model.safetensors", "../x.safetensors"),
    "header_empty": text("model.safetensors", b""),
}


TOKENIZER_TRAPS = {
    f"tokenizer_{name}": both(TENSORS, text("tokenizer.json", content))
    for name, content in {
        "deep": b'{"model":' + b"[" * BOMB_BYTES,
        "wide": b'{"model":[' + b"[]," * (BOMB_BYTES // 3) + b"0]}",
        "empty": b"{}",
        "ids": b'{"model": {"type": "BPE", "vocab": {"a": 18446744073709551615}, "merges": []}}',
        "merges": b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
        "binary": bytes(range(256)) * 100,
    }.items()
}
