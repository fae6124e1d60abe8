"""The catalogue of GPUs: every entry is complete, has sources and agrees with the card's label."""

import re
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from optprof.scenarios import Scenario, hardware
from optprof.scenarios.spec import Option

GIB = 2**30
# The memory on the box in the vendors' units: multiples of 2**30 bytes, 10**9 for HBM3E cards.
LABEL = {
    "rtx3060": 12 * GIB,
    "rtx3090": 24 * GIB,
    "rtx4090": 24 * GIB,
    "rtx5090": 32 * GIB,
    "t4": 16 * GIB,
    "v100-16": 16 * GIB,
    "v100-32": 32 * GIB,
    "a10": 24 * GIB,
    "l4": 24 * GIB,
    "l40s": 48 * GIB,
    "a100-40": 40 * GIB,
    "a100-80": 80 * GIB,
    "h100-80": 80 * GIB,
    "h200": 141 * GIB,
    "b200": 192 * 10**9,
    "mi300x": 192 * GIB,
}
# Memory clock (double data rate, in Hz) and bus width in bits, as deviceQuery prints them.
CLOCK_AND_BUS = {
    "rtx4090": (10_501e6, 384),
    "rtx5090": (14_001e6, 512),
    "t4": (5_001e6, 256),
    "v100-16": (877e6, 4096),
    "v100-32": (877e6, 4096),
    "a100-40": (1_215e6, 5120),
    "a100-80": (1_593e6, 5120),
    "h100-80": (2_619e6, 5120),
    "b200": (3_996e6, 7680),
}


def test_the_help_of_gpu_names_the_default_one():
    hint = get_type_hints(Scenario, include_extras=True)["gpu"]
    (option,) = (extra for extra in get_args(hint) if isinstance(extra, Option))
    assert hardware.DEFAULT_GPU in (option.unset or "")


def test_the_catalogue_lists_these_gpus():
    assert set(hardware.available()) == set(LABEL)


@pytest.mark.parametrize("name", LABEL)
def test_an_entry_has_the_source_of_each_figure(name: str):
    gpu = hardware.describe(name)
    assert gpu.name == name
    assert gpu.memory_source
    assert "https://" in gpu.source


@pytest.mark.parametrize("name", LABEL)
def test_memory_is_the_label_less_the_bytes_of_driver_and_error_correction(name: str):
    gpu = hardware.describe(name)
    assert 0.9 * LABEL[name] < gpu.memory_bytes < LABEL[name]
    assert gpu.label_gb in (LABEL[name] / GIB, LABEL[name] / 10**9)
    assert gpu.memory_bytes - gpu.usable_bytes == 512 * 2**20


@pytest.mark.parametrize("name", CLOCK_AND_BUS)
def test_bandwidth_is_clock_times_bus(name: str):
    clock, bus = CLOCK_AND_BUS[name]
    assert hardware.describe(name).bandwidth == pytest.approx(2 * clock * bus / 8, rel=0.005)


def test_rates_rise_as_the_dtype_narrows():
    for name in LABEL:
        rates = hardware.describe(name).rates
        result = [rates[dtype] for dtype in ("fp32", "tf32", "bf16", "fp8") if dtype in rates]
        assert result == sorted(result), name
        assert rates.get("bf16", rates["fp16"]) == rates["fp16"], name


def test_dtypes_of_a_chip_follow_its_compute_capability():
    """bf16 came with 8.0, fp8 with 8.9."""
    for name in LABEL:
        gpu = hardware.describe(name)
        assert gpu.has_bf16 == (gpu.compute_capability >= (8, 0)), name
        assert gpu.has_fp8 == (gpu.compute_capability >= (8, 9)), name


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("h100", "h100-80"), ("a100", "a100-80"), ("RTX 3090", "rtx3090"), ("H200x", "h200")],
)
def test_an_unknown_name_is_an_error_with_near_ones(wrong: str, near: str):
    with pytest.raises(
        ValueError, match=rf"no GPU is named {re.escape(repr(wrong))}; did you mean .*\b{near}"
    ):
        hardware.describe(wrong)


def test_the_catalogue_needs_no_torch():
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, optprof.scenarios.hardware; sys.exit('torch' in sys.modules)",
        ],
        check=True,
    )


# Cores by the vendors' data sheets. A multiprocessor has 64 on T4, V100, A100 and MI300X, else 128.
CORES = {
    "rtx3060": 3_584,
    "rtx3090": 10_496,
    "rtx4090": 16_384,
    "rtx5090": 21_760,
    "t4": 2_560,
    "v100-16": 5_120,
    "v100-32": 5_120,
    "a10": 9_216,
    "l4": 7_424,
    "l40s": 18_176,
    "a100-40": 6_912,
    "a100-80": 6_912,
    "h100-80": 16_896,
    "h200": 16_896,
    "b200": 18_944,
    "mi300x": 19_456,
}


@pytest.mark.parametrize("name", hardware.available())
def test_the_count_of_multiprocessors_follows_the_cores_on_the_data_sheet(name: str):
    gpu = hardware.describe(name)
    few = gpu.compute_capability in ((7, 0), (7, 5), (8, 0), (9, 4))
    assert gpu.multiprocessors * (64 if few else 128) == CORES[name]
    assert gpu.multiprocessors_source
    assert gpu.threads_per_multiprocessor in (1024, 1536, 2048)


# Names as nvidia-smi and torch print them, with old and new drivers.
CALLED = {
    "rtx3060": ("NVIDIA GeForce RTX 3060", "GeForce RTX 3060"),
    "rtx3090": ("NVIDIA GeForce RTX 3090", "GeForce RTX 3090"),
    "rtx4090": ("NVIDIA GeForce RTX 4090",),
    "rtx5090": ("NVIDIA GeForce RTX 5090",),
    "t4": ("Tesla T4", "NVIDIA T4", "NVIDIA Tesla T4"),
    "v100-16": ("Tesla V100-SXM2-16GB", "NVIDIA V100-SXM2-16GB"),
    "v100-32": ("Tesla V100-SXM2-32GB", "NVIDIA V100-SXM2-32GB"),
    "a10": ("NVIDIA A10", "A10"),
    "l4": ("NVIDIA L4",),
    "l40s": ("NVIDIA L40S",),
    "a100-40": ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
    "a100-80": ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
    "h100-80": ("NVIDIA H100 80GB HBM3",),
    "h200": ("NVIDIA H200",),
    "b200": ("NVIDIA B200",),
    "mi300x": ("AMD Instinct MI300X", "AMD Instinct MI300X VF"),
}


@pytest.mark.parametrize("name", LABEL)
def test_a_device_is_recognised_by_its_own_name(name: str):
    memory = hardware.describe(name).memory_bytes
    for device in CALLED[name]:
        assert hardware.name_of_device(device) == name
        # Drivers differ by some MiB, and without error correction there is a sixteenth more.
        assert [
            hardware.name_of_device(device, nbytes)
            for nbytes in (memory, memory - 50 * 2**20, memory * 17 // 16)
        ] == [name] * 3


@pytest.mark.parametrize(
    "called",
    [
        *(
            "NVIDIA GeForce RTX 3060 Ti",
            "NVIDIA GeForce RTX 3060 Laptop GPU",
            "NVIDIA GeForce RTX 3090 Ti",
            "NVIDIA GeForce RTX 3080",
        ),
        *(
            "NVIDIA GeForce RTX 4090 D",
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA GeForce RTX 4080 SUPER",
        ),
        *(
            "NVIDIA GeForce RTX 5090 D",
            "NVIDIA GeForce RTX 5090 Laptop GPU",
            "NVIDIA GeForce RTX 2080 Super with Max-Q Design",
        ),
        *("NVIDIA T400 4GB", "NVIDIA T4G", "NVIDIA T1000", "Tesla T40 24GB"),
        *(
            "Tesla V100-PCIE-16GB",
            "Tesla V100-PCIE-32GB",
            "Tesla V100S-PCIE-32GB",
            "Tesla V100-SXM3-32GB",
            "Tesla V100-DGXS-32GB",
        ),
        *(
            "NVIDIA A10G",
            "NVIDIA A10M",
            "NVIDIA A100-PCIE-40GB",
            "NVIDIA A100 80GB PCIe",
            "NVIDIA A100-SXM-64GB",
            "NVIDIA A16",
            "NVIDIA A1",
        ),
        *(
            "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
            "NVIDIA A100-SXM4-80GB MIG 7g.80gb",
            "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
            "GRID A100-10C",
        ),
        *("NVIDIA L40", "NVIDIA L40G", "NVIDIA L20", "NVIDIA L2"),
        *(
            "NVIDIA H100 PCIe",
            "NVIDIA H100 NVL",
            "NVIDIA H100 64GB HBM2",
            "NVIDIA GH200 480GB",
            "NVIDIA H800",
            "NVIDIA H20",
        ),
        *("NVIDIA H200 NVL", "NVIDIA GB200", "NVIDIA B300 SXM6 AC", "NVIDIA B100", "NVIDIA GB10"),
        *(
            "NVIDIA RTX 6000 Ada Generation",
            "NVIDIA RTX A6000",
            "Quadro RTX 6000",
            "Quadro T4",
            "NVIDIA RTX 4000 Ada Generation",
        ),
        *(
            "AMD Instinct MI300A",
            "AMD Instinct MI325X",
            "AMD Instinct MI250X",
            "AMD Radeon RX 7900 XTX",
            "Instinct",
            "MI300X",
        ),
        *("", "NVIDIA", "NVIDIA Graphics Device", "Tesla", "40GB"),
    ],
)
def test_a_device_of_another_kind_is_not_in_the_catalogue(called: str):
    assert hardware.name_of_device(called) is None


@pytest.mark.parametrize(
    ("called", "memory"),
    [
        ("NVIDIA GeForce RTX 3060", 8 * GIB),
        ("Tesla V100-SXM2-16GB", 32 * GIB),
        ("NVIDIA A100-SXM4-80GB", 40 * GIB),
        # One of eight partitions of an MI300X.
        ("AMD Instinct MI300X", 24 * GIB),
    ],
)
def test_a_device_with_other_memory_is_not_in_the_catalogue(called: str, memory: int):
    assert hardware.name_of_device(called, memory) is None
