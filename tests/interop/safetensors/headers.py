"""Files in the safetensors format with any header that a test wants."""

import json
from pathlib import Path
from typing import Any


def entry(dtype: str = "F32", shape=(2, 3), offsets=(0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write(path: Path, header: bytes | dict, num_bytes: int, length: int | None = None) -> Path:
    """A file with this header, `length` as its stated size, and `num_bytes` of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = (len(text) if length is None else length).to_bytes(8, "little")
    path.write_bytes(prefix + text + bytes(i % 251 for i in range(num_bytes)))
    return path
