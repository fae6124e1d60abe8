"""Readings of the GPU's management library, with a fake library."""

import os
import sys
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optprof.profiler.machine.nvml import reading_gpu, warnings
from optprof.profiler.records.record import GpuReading

Process = namedtuple("Process", "pid usedGpuMemory")
QUIET = GpuReading(
    clock_mhz=1980,
    memory_clock_mhz=3201,
    temperature_celsius=41,
    slowed_by=(),
    other_processes=0,
    process_bytes=3 << 30,
)


class NVMLError(Exception):
    """The error of the fake library."""


def read_gpu() -> GpuReading | None:
    with reading_gpu() as read:
        return read()


def library(
    monkeypatch: pytest.MonkeyPatch, processes: list[Process], reasons: int = 0
) -> dict[str, Any]:
    calls: dict[str, Any] = {}

    def handle(uuid: str) -> str:
        calls["uuid"] = uuid
        return "handle"

    def temperature(*_: Any) -> int:
        raise NVMLError("not supported")

    def shut_down() -> None:
        calls["ended"] = True

    fake = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlShutdown=shut_down,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetComputeRunningProcesses=lambda _: processes,
        nvmlDeviceGetCurrentClocksEventReasons=lambda _: reasons,
        nvmlDeviceGetClockInfo=lambda _, kind: {1: 1980, 2: 3201}[kind],
        nvmlDeviceGetTemperature=temperature,
        nvmlClocksEventReasonSwPowerCap=0x4,
        nvmlClocksEventReasonHwSlowdown=0x8,
        nvmlClocksEventReasonGpuIdle=0x1,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda place: SimpleNamespace(uuid=f"0000-{place}")
    )
    return calls


def test_torch_s_device_is_read_and_the_library_shut_down(monkeypatch: pytest.MonkeyPatch):
    calls = library(monkeypatch, [Process(os.getpid(), 3 << 30)], reasons=0x1)
    assert read_gpu() == replace(QUIET, temperature_celsius=None)
    assert calls == {"uuid": "GPU-0000-1", "ended": True}


def test_other_processes_on_the_gpu_are_counted(monkeypatch: pytest.MonkeyPatch):
    library(
        monkeypatch,
        [Process(os.getpid(), 3 << 30), Process(1, 1 << 30), Process(2, None)],
        reasons=0x4 | 0x8,
    )
    reading = read_gpu()
    assert reading is not None
    assert (reading.other_processes, reading.slowed_by) == (
        2,
        ("a hardware slowdown", "its power limit"),
    )


def test_a_process_without_known_bytes_may_be_this_one(
    monkeypatch: pytest.MonkeyPatch,
):
    library(monkeypatch, [Process(os.getpid(), None), Process(1, 1 << 30)])
    reading = read_gpu()
    assert reading is not None
    assert (reading.other_processes, reading.process_bytes) == (1, None)


def test_clocks_are_read_without_permission_to_list_processes(
    monkeypatch: pytest.MonkeyPatch,
):
    library(monkeypatch, [])

    def refuse(_: Any) -> list[Process]:
        raise NVMLError("no permission")

    monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetComputeRunningProcesses", refuse)
    assert read_gpu() == replace(
        QUIET, temperature_celsius=None, other_processes=None, process_bytes=None
    )


def test_an_older_library_with_throttle_reasons_is_read(monkeypatch: pytest.MonkeyPatch):
    library(monkeypatch, [], reasons=0x4)
    old = sys.modules["pynvml"]
    for name in ("nvmlDeviceGetCurrentClocks{}Reasons", "nvmlClocks{}ReasonSwPowerCap"):
        monkeypatch.setattr(
            old, name.format("Throttle"), getattr(old, name.format("Event")), raising=False
        )
        monkeypatch.delattr(old, name.format("Event"))
    reading = read_gpu()
    assert reading is not None
    assert reading.slowed_by == ("its power limit",)


def test_the_library_is_started_once_for_many_readings(monkeypatch: pytest.MonkeyPatch):
    library(monkeypatch, [])
    started: list[int] = []
    monkeypatch.setattr(sys.modules["pynvml"], "nvmlInit", lambda: started.append(1))
    with reading_gpu() as read:
        assert read() == read() == read()
    assert started == [1]


def test_in_a_container_the_only_process_is_this_one(monkeypatch: pytest.MonkeyPatch):
    library(monkeypatch, [Process(0, 3 << 30)])
    reading = read_gpu()
    assert reading is not None
    assert (reading.other_processes, reading.process_bytes) == (0, 3 << 30)


def test_without_the_library_or_a_driver_there_are_no_readings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_gpu() is None


def test_disturbances_of_a_timing_are_warnings():
    assert warnings((QUIET, QUIET)) == []
    assert warnings((QUIET, replace(QUIET, clock_mhz=1890))) == []
    lines = warnings(
        (QUIET, replace(QUIET, clock_mhz=1500, slowed_by=("its temperature",), other_processes=1))
    )
    assert lines == [
        "the GPU was slowed down by its temperature",
        "1 other process had memory on the GPU",
        "the GPU's clock went from 1980 to 1500 MHz",
    ]
