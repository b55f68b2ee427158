"""What general-purpose compressors need for the same bytes: the marks a language model has to beat."""

import gzip
import hashlib
import json
import logging
import lzma
import os
import pathlib

from moejax import durable

log = logging.getLogger(__name__)

COMPRESSORS = {
    "gzip -9": lambda data: gzip.compress(data, compresslevel=9, mtime=0),
    "xz -9": lambda data: lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9),
}


def baselines(data: bytes, cache: str | os.PathLike | None = None) -> dict[str, float]:
    """Bits per byte of `data` under the settings of the command lines `gzip -9` and `xz -9`.

    Args:
      data: the bytes that the model is evaluated on, as one stream.
      cache: a JSON file that keeps the answer beside the hash of `data`; compressing is slow for large data.
    """
    if not data:
        raise ValueError("there are no bytes to compress; the held-out set is empty")
    digest = hashlib.sha256(data).hexdigest()
    known = _load(cache)
    if known.get("sha256") == digest and set(known.get("bits_per_byte", ())) == set(COMPRESSORS):
        return known["bits_per_byte"]
    log.info("compressing %d held-out bytes, to compare: %s", len(data), ", ".join(COMPRESSORS))
    bits = {name: 8 * len(compress(data)) / len(data) for name, compress in COMPRESSORS.items()}
    if cache is not None:
        _save(pathlib.Path(cache), {"sha256": digest, "bytes": len(data), "bits_per_byte": bits})
    return bits


def _load(cache: str | os.PathLike | None) -> dict:
    """The cache's record; empty when there is none or it cannot be read."""
    try:
        record = json.loads(pathlib.Path(cache).read_text()) if cache is not None else {}
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _save(cache: pathlib.Path, record: dict) -> None:
    durable.write_file(cache, (json.dumps(record, indent=1) + "\n").encode())
