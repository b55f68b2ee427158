"""The machine every test sees: eight CPU devices, and no implicit rank promotion."""

import gc
import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# `tests`, `configs` and the doors lie beside the package; a checkout that is not installed has them here.
sys.path.insert(0, str(ROOT))

from tests import quick_compile  # noqa: E402

# All of this is read when jax is imported, which no test file does before this file.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_force_host_platform_device_count=8",
        # Eight device threads per test process are enough; a matmul of one need not wake more.
        "--xla_cpu_multi_thread_eigen=false",
        quick_compile.FLAGS,
        # XLA kills a process whose devices do not meet within 40 s, which a busy machine can need.
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
        "--xla_cpu_collective_call_terminate_timeout_seconds=240",
    )
)
# XLA sizes its pool by the cores; with fewer than two threads per device, collectives that were
# dispatched without waiting starve one another and hang for ever.
os.environ["NPROC"] = "32"


def _hypothesis_profile() -> None:
    import hypothesis

    quick = {"deadline": None, "max_examples": 25, "print_blob": True}
    hypothesis.settings.register_profile("moejax", **quick)
    hypothesis.settings.register_profile("ci", **quick, derandomize=True, database=None)
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "moejax")


_hypothesis_profile()


@pytest.fixture(scope="session", autouse=True)
def subprocess_compile_cache(tmp_path_factory):
    """Let the programs that tests start share their compilations.

    One directory per test process, because jax writes entries without a lock. This process is not
    affected: jax has read the variable already.
    """
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compile_cache"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="module", autouse=True)
def programs_that_are_let_go():
    """Forget compiled programs before there are too many of them.

    Each is about ten mappings of memory, Linux allows a process 65,530, and XLA aborts when it gets no more.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        import jax

        jax.clear_caches()
        gc.collect()
