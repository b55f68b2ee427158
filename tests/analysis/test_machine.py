"""Shapes and units of the yardsticks; their values belong to the machine."""

import jax
import pytest

from moejax.analysis.machine import describe, matmul_rate, memory_bandwidth, peak_flops


def test_describe_names_what_a_reader_of_a_benchmark_asks():
    machine = describe()
    assert machine.devices == jax.device_count() == 8
    assert machine.cores >= 1
    assert machine.jax == jax.__version__
    assert f"8 x {machine.device}" in str(machine)
    assert f"JAX {jax.__version__}" in str(machine)


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
    ],
)
def test_peak_of_known_accelerators(kind, tera):
    assert peak_flops(kind) == tera * 1e12


def test_a_cpu_has_no_stated_peak():
    assert peak_flops() is None
    assert peak_flops("TPU v99") is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rates_are_positive(dtype):
    assert 0 < matmul_rate(dtype, size=32, repeats=1) < float("inf")
    assert 0 < memory_bandwidth(size=2**14, repeats=1) < float("inf")
