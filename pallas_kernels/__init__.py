"""Kernels for mixture-of-experts models; each op is a folder with one meaning and several implementations.

`<op>/api.py` is the public function, `reference.py` the meaning in a few lines, `cpu.py`, `tpu.py` and `gpu.py`
the fast ways, `shapes.py` the real sizes that tests and benchmarks share. Nothing here imports moejax.
"""

from pallas_kernels.grouped_matmul.api import grouped_matmul, grouped_outer

__all__ = ["grouped_matmul", "grouped_outer"]
