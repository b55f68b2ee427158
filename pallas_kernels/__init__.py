"""Kernels for mixture-of-experts models; each op is a folder with one meaning and several implementations.

In a folder, `api.py` has the public functions, `reference.py` the meaning in a few lines, `cpu.py`, `tpu.py`
and `gpu.py` the fast ways, `shapes.py` the sizes that tests and benchmarks share. Nothing imports moejax.
"""

from pallas_kernels.grouped_matmul.api import grouped_matmul, grouped_outer, quantized_grouped_matmul
from pallas_kernels.grouped_mlp.api import grouped_mlp
from pallas_kernels.grouped_swiglu.api import grouped_swiglu
from pallas_kernels.int8_matmul.api import int8_matmul, quantize_channels, quantize_rows, quantized_matmul
from pallas_kernels.permute.api import permute, unpermute
from pallas_kernels.segment_attention.api import segment_attention, segment_attention_with_lse
from pallas_kernels.slot_attention.api import slot_attention, write_page, write_pages
from pallas_kernels.top_k_gate.api import Gates, top_k_gate
from pallas_kernels.union_experts.api import expert_weights, union_experts

__all__ = [
    "Gates",
    "expert_weights",
    "grouped_matmul",
    "grouped_mlp",
    "grouped_outer",
    "grouped_swiglu",
    "int8_matmul",
    "permute",
    "quantize_channels",
    "quantize_rows",
    "quantized_grouped_matmul",
    "quantized_matmul",
    "segment_attention",
    "segment_attention_with_lse",
    "slot_attention",
    "top_k_gate",
    "union_experts",
    "unpermute",
    "write_page",
    "write_pages",
]
