"""Findings of the doctor, with fake GPUs and compilers."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from optprof.profiler.machine.doctor import diagnose
from optprof.profiler.records.record import GpuReading

READING = GpuReading(
    clock_mhz=1980,
    memory_clock_mhz=None,
    temperature_celsius=41,
    slowed_by=(),
    other_processes=0,
    process_bytes=None,
)


@pytest.mark.parametrize(
    ("read", "text", "good"),
    [
        (lambda: READING, "reads cuda:0: 1980 MHz, 41 °C", True),
        (lambda: None, "no readings of cuda:0", False),
    ],
)
def test_each_gpu_is_followed_by_nvmls_reading_of_it(
    read: Callable[[], GpuReading | None], text: str, good: bool, monkeypatch: pytest.MonkeyPatch
):
    properties = SimpleNamespace(name="H200", major=9, minor=0, total_memory=140 << 30)
    fakes = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_properties": lambda _: properties,
        "device": lambda _: nullcontext(),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("optprof.profiler.machine.nvml.reading_gpu", lambda: nullcontext(read))
    gpu, nvml = (
        finding for finding in diagnose() if finding.section == "devices" and finding.name != "CPU"
    )
    assert gpu.text.startswith("H200, 140.00 GiB")
    assert (nvml.text, nvml.good) == (text, good)


@pytest.mark.parametrize(
    ("compiler", "text", "advice"),
    [
        ("true", "/true, for optprof's fused", ""),
        ("no-such-compiler", "missing, for optprof's fused", "install g++ or clang++, or set CXX"),
    ],
)
def test_the_compiler_is_the_one_that_a_fused_step_would_use(
    compiler: str, text: str, advice: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CXX", compiler)
    (finding,) = (finding for finding in diagnose() if finding.name == "C++ compiler")
    assert text in finding.text
    assert (finding.good, finding.advice) == (not advice, advice)
