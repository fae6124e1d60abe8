"""Units: bytes, factors, shares and seconds as readable text."""

import math

import pytest

from optprof.reports import units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (12_460_892_320, "11.605"),
        (53_907_324_928, "50.205"),
        (9_115_648, "0.00849"),
        (1_000_000_000_000, "931.323"),
        (2**30, "1.000"),
        (0, "0"),
        (-(2**30), "\u22121.000"),
    ],
)
def test_gib_keep_the_digits_that_distinguish_small_states(count, text):
    assert units.gib_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (12_460_892_320, "11.61 GiB"),
        (564_430_000_000, "525.7 GiB"),
        (3 * 2**30 + 1, "3.000 GiB"),
        (9_115_648, "8.69 MiB"),
        (97 * 2**20, "97.0 MiB"),
        (237 * 2**20, "237 MiB"),
        (2_320, "2.27 KiB"),
        (512, "512 B"),
        (0, "0 B"),
    ],
)
def test_bytes_choose_their_own_unit(count, text):
    assert units.bytes_text(count) == text


def test_the_exact_count_has_every_byte():
    assert units.exact_text(12_460_891_920) == "12,460,891,920 bytes"
    assert units.exact_text(1) == "1 byte"


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (1, 2, "50.0 %"),
        (12_460_892_320 - 9_115_648, 12_460_892_320, "99.9 %"),
        (9_997, 10_000, "99.97 %"),
        (999_999_999, 1_000_000_000, "99.9999999 %"),
        (10, 10, "100 %"),
        (0, 10, "0 %"),
        (1, 1_000_000, "0.0001 %"),
        (-4, 8, "\u221250.0 %"),
        (-8, 8, "\u2212100 %"),
        (3, 0, units.NOTHING),
    ],
)
def test_a_share_reads_as_0_or_100_per_cent_only_if_it_is_exactly_that(part, whole, text):
    assert units.percent_text(part, whole) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.0, "2.00"),
        (1.996, "2.00"),
        (13.44, "13.4"),
        (1366.9, "1,367"),
        (0.5, "0.50"),
        (0.0123, "0.012"),
    ],
)
def test_a_factor_has_about_three_digits(value, text):
    assert units.factor_text(value) == text + units.TIMES


def test_the_factor_against_0_bytes_is_infinite():
    assert units.factor_text(math.inf) == units.INFINITE


@pytest.mark.parametrize(
    ("value", "text"), [(8.0000015, "8.00"), (0.005852, "0.00585"), (0.0, "0.00"), (2.0006, "2.00")]
)
def test_small_counts_of_bytes_per_parameter_are_not_rounded_to_0(value, text):
    assert units.per_parameter_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00085, "850 µs"),
        (0.0627, "62.7 ms"),
        (0.4621, "462 ms"),
        (0.99996, "1.00 s"),
        (2.917, "2.92 s"),
        (38.12, "38.1 s"),
        (0.0, "0 s"),
    ],
)
def test_seconds_have_three_digits_and_stay_below_1000_of_a_unit(seconds, text):
    assert units.seconds_text(seconds) == text


def test_a_range_has_its_unit_once_if_both_ends_share_it():
    assert units.range_text(0.455, 0.471) == f"455 {units.DASH} 471 ms"
    assert units.range_text(0.962, 1.02) == f"962 ms {units.DASH} 1.02 s"


@pytest.mark.parametrize(
    ("count", "text"),
    [(124_439_808, "124 M"), (1_557_611_200, "1.56 B"), (999_900_000, "1.00 B"), (12, "12")],
)
def test_parameters_are_counted_in_millions_and_billions(count, text):
    assert units.count_text(count) == text


def test_a_difference_that_rounds_to_0_has_no_sign():
    assert units.difference_text(0.008) == "+0.01"
    assert units.difference_text(-0.28) == "\u22120.28"
    assert units.difference_text(-0.001) == "0.00"
