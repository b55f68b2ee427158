"""Tiny GGUF files, byte by byte."""

import struct

import numpy as np

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9  # types of values
FLOAT, HALF, Q8_0 = 0, 1, 8  # types of tensors


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, code: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", code) + value


def array(code: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", code, count) + items


def info(name: str, dims: tuple[int, ...], code: int = FLOAT, offset: int = 0) -> bytes:
    """`dims` as the file has them, fastest first."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, code, offset)


def pad(raw: bytes, alignment: int = 32) -> bytes:
    return raw + bytes(-len(raw) % alignment)


def file(entries=(), infos=(), data: bytes = b"", version: int = 3, alignment: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(entries))
    return pad(head + b"".join(entries) + b"".join(infos), alignment) + data


ENTRIES = (
    entry("general.architecture", STRING, text("llama")),
    entry("llama.block_count", U32, struct.pack("<I", 2)),
    entry("llama.eps", F32, struct.pack("<f", 0.5)),
    entry("tokenizer.add", BOOL, b"\1"),
    entry("tokenizer.tokens", ARRAY, array(STRING, 3, text("a") + text("\u00e9") + text(""))),
    entry("tokenizer.kinds", ARRAY, array(U32, 2, struct.pack("<2I", 7, 9))),
    entry("nested", ARRAY, array(ARRAY, 2, array(BOOL, 1, b"\0") + array(U32, 0, b""))),
)
INFOS = (info("w", (3, 2)), info("b", (2,), HALF, 32))
DATA = pad(np.arange(6, dtype="<f4").tobytes()) + pad(np.array([1.5, -2], "<f2").tobytes())


def small() -> bytes:
    """Seven metadata entries, and the tensors w[2, 3] = 0..5 and b[2] = (1.5, -2)."""
    return file(ENTRIES, INFOS, DATA)
