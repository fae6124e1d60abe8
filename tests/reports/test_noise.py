"""Noise: a time that is not known to 5 %, or that the record says was disturbed, is marked."""

import pytest

from optprof.profiler.machine import nvml
from optprof.profiler.measuring import disturbances, harness
from optprof.profiler.records.record import GpuReading, Watched
from optprof.reports.arithmetic.times import noise

QUIET = tuple(0.100 + 0.0001 * number for number in range(9))
# Of nine samples the 95 % interval reaches from the second smallest to the second largest:
# 92 to 108 ms around 100 ms.
SHAKEN = (0.09, 0.092, 0.094, 0.096, 0.1, 0.104, 0.106, 0.108, 0.15)


def test_a_median_known_to_five_per_cent_is_no_noise(timed):
    assert noise(timed(step=QUIET)) == ""


def test_noise_names_the_reach_of_the_interval_or_the_few_samples(timed):
    assert noise(timed(step=SHAKEN)) == "±8.0 %"
    assert noise(timed(step=(0.1, 0.1, 0.1))) == "only 3 samples"
    assert noise(timed(times=None)) == ""
    assert noise(timed(step=(0.0,) * 9)) == "", "a coarse clock reads 0"


def reading(**changes):
    usual = dict.fromkeys(
        ("memory_clock_mhz", "temperature_celsius", "other_processes", "process_bytes")
    )
    return GpuReading(**{**usual, "clock_mhz": 1_000, "slowed_by": (), **changes})


@pytest.mark.parametrize(
    "readings",
    [
        (reading(slowed_by=("its temperature",)),),
        (reading(other_processes=1),),
        (reading(other_processes=2),),
        (reading(), reading(clock_mhz=500)),
    ],
)
def test_every_warning_of_nvml_spoils_a_time(timed, readings):
    (warning,) = nvml.warnings(readings)
    assert noise(timed(step=QUIET, watched=Watched(warnings=(warning,)))) == warning


def test_a_busy_machine_and_an_unsettled_warm_up_spoil_a_time(timed, monkeypatch):
    monkeypatch.setattr(disturbances.Disturbances, "others_share", lambda _self: 0.4)
    with disturbances.disturbances("cpu") as machine:
        busy = machine.warnings()
    warnings = (*busy, harness._unsettled(0.2))
    shaken = noise(timed(step=SHAKEN, watched=Watched(warnings=warnings)))
    assert shaken == ", ".join(("±8.0 %", *warnings))


def test_a_warning_about_bytes_leaves_times_alone(timed):
    other = "a profiler was running already; memory of tensors was not watched"
    assert noise(timed(step=QUIET, watched=Watched(warnings=(other,)))) == ""
