"""XLA's flags for programs that run a few times for milliseconds, so that nearly all they cost is to compile.

Nothing is imported here that imports jax, which reads flags only once. A process whose XLA lacks a flag ends.
"""

from importlib import metadata

# XLA's older and quicker code generator, which releases after jax 0.10 no longer have.
_OLD_EMITTERS = metadata.version("jaxlib").startswith("0.10.")
FLAGS = "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * _OLD_EMITTERS
