"""The types of tensors in GGUF files: how rows of blocks become numbers, and numbers blocks."""

import ml_dtypes
import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind

# What is stored as numbers; every other type is stored as blocks of small integers with scales.
PLAIN = {
    Kind.F32: np.dtype(np.float32),
    Kind.F16: np.dtype(np.float16),
    Kind.BF16: np.dtype(ml_dtypes.bfloat16),
}
BLOCKS = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)
KINDS = (*PLAIN, *BLOCKS)


def dtype(kind: Kind) -> np.dtype:
    """Of the numbers that a tensor of this type is read as."""
    return PLAIN.get(kind, np.dtype(np.float32))


def row_bytes(kind: Kind, width: int) -> int:
    """Bytes of a row of `width` numbers."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return width // block * block_bytes


def decode(raw_RB: np.ndarray, kind: Kind) -> np.ndarray:
    """Rows of numbers out of rows of bytes (uint8), exactly as llama.cpp's reference has them."""
    if kind in PLAIN:
        return raw_RB.view(PLAIN[kind])
    with np.errstate(over="ignore", invalid="ignore"):  # a scale that is not finite is for the reader to find
        return quants.dequantize(raw_RB, kind)


def encode(rows_RD: np.ndarray, kind: Kind) -> np.ndarray:
    """Rows of bytes (uint8) out of rows of numbers, rounded to nearest."""
    if kind in PLAIN:
        return np.ascontiguousarray(rows_RD.astype(PLAIN[kind], copy=False)).view(np.uint8)
    return quants.quantize(rows_RD.astype(np.float32, copy=False), kind)
