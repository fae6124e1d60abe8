"""float8 by integer arithmetic: torch's numbers for every code, and roundings by hand."""

import pytest
import torch
from torch import Tensor

from optprof.optimizers.float8 import (
    PERIOD,
    decode_e4m3,
    decode_e5m2,
    dither_e4m3,
    dither_e5m2,
    encode_e4m3,
    encode_e5m2,
)

CPU = torch.device("cpu")


@pytest.fixture(params=["by itself", "compiled"])
def _each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the eager code and the code for torch.compile."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param == "compiled")


@pytest.mark.usefixtures("_each_way")
def test_every_code_is_decoded_as_torch_decodes_it() -> None:
    # A second moment has no sign.
    for decode, dtype, count in (
        (decode_e4m3, torch.float8_e4m3fn, 256),
        (decode_e5m2, torch.float8_e5m2, 128),
    ):
        codes = torch.arange(count, dtype=torch.uint8).view(dtype)
        codes = codes[codes.float().isfinite()]
        decoded = decode(
            codes, torch.empty(codes.shape), torch.empty(codes.shape, dtype=torch.int16)
        )
        assert torch.equal(decoded, codes.float())


def as_e4m3(values: Tensor, thresholds: Tensor) -> Tensor:
    codes = torch.empty_like(values, dtype=torch.float8_e4m3fn)
    encode_e4m3(values, thresholds, codes)
    return codes


def as_e5m2(values: Tensor, thresholds: Tensor) -> Tensor:
    codes = torch.empty_like(values, dtype=torch.float8_e5m2)
    encode_e5m2(values, thresholds, codes)
    return codes


@pytest.mark.usefixtures("_each_way")
def test_a_value_of_the_format_is_encoded_exactly_at_any_threshold() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    signed = codes[codes.view(torch.float8_e4m3fn).float().isfinite()]
    positive = codes[:0x7C]
    for thresholds in (
        torch.zeros((), dtype=torch.int32),
        torch.tensor(2**20 - 1, dtype=torch.int32),
    ):
        assert torch.equal(
            as_e4m3(signed.view(torch.float8_e4m3fn).float(), thresholds).view(torch.uint8), signed
        )
        assert torch.equal(
            as_e5m2(positive.view(torch.float8_e5m2).float(), thresholds).view(torch.uint8),
            positive,
        )


@pytest.mark.usefixtures("_each_way")
@pytest.mark.parametrize(
    ("value", "below", "above", "share"),
    [
        (1.03125, 1.0, 1.125, 0.25),
        (-1.03125, -1.0, -1.125, 0.25),
        (-300.0, -288.0, -320.0, 0.375),
        (1.96875, 1.875, 2.0, 0.75),
        # Below 2^-6 the numbers are 2^-9 apart.
        (2.0**-9 * 1.5, 2.0**-9, 2.0**-8, 0.5),
        (2.0**-9 * 0.125, 0.0, 2.0**-9, 0.125),
    ],
)
def test_e4m3_rounds_up_in_proportion_to_the_remainder(
    value: float, below: float, above: float, share: float
) -> None:
    rounded = as_e4m3(torch.full((PERIOD,), value), dither_e4m3(PERIOD, 0.3, CPU)).float()
    assert set(rounded.tolist()) == {below, above}
    assert (rounded == above).float().mean() == pytest.approx(share, abs=2 / PERIOD)


@pytest.mark.usefixtures("_each_way")
@pytest.mark.parametrize(
    ("value", "below", "above", "share"),
    [
        (1.0625, 1.0, 1.25, 0.25),
        (45056.0, 40960.0, 49152.0, 0.5),
        (2.0**-16 * 0.25, 0.0, 2.0**-16, 0.25),
        (2.0**-14 * 1.125, 2.0**-14, 2.0**-14 * 1.25, 0.5),
    ],
)
def test_e5m2_rounds_up_in_proportion_to_the_remainder(
    value: float, below: float, above: float, share: float
) -> None:
    rounded = as_e5m2(torch.full((PERIOD,), value), dither_e5m2(PERIOD, 0.3, CPU)).float()
    assert set(rounded.tolist()) == {below, above}
    assert (rounded == above).float().mean() == pytest.approx(share, abs=2 / PERIOD)


def test_every_element_is_rounded_without_bias_in_time() -> None:
    values = torch.rand(512, generator=torch.Generator().manual_seed(0)) + 1.0
    total = torch.zeros(512, dtype=torch.float64)
    for step in range(4000):
        thresholds = dither_e5m2(512, step * (2**0.5 - 1) % 1, CPU)
        total += as_e5m2(values.clone(), thresholds).double()
    # Random rounding would deviate by 0.1 / sqrt(4000) = 0.0016; turns deviate less.
    assert (total / 4000 - values).abs().max() < 0.0005
