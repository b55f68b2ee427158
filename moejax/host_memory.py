"""Keeps the memory that one step frees for the next one.

XLA on CPU asks malloc for hundreds of megabytes in every step. glibc hands such blocks back to the system at
once and gets them again as fresh pages, each of which the kernel clears on first touch: a quarter of a
training step of `configs/default.py`.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_pages() -> None:
    """Never give memory back to the system; call it before threads start. Does nothing without glibc."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # large blocks from the heap
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_ARENA_MAX, 1)  # only the main heap can hold blocks of any size
