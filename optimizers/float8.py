"""float8 tensors by integer arithmetic: decoding, and rounding that loses nothing on average.

A float8 is the head of a wider float: e5m2 of a float16, and either format of a float32 whose
exponent was shifted by a multiplication with a power of 2. To drop the tail is to round towards 0.
To add a threshold below the last place that is kept, and then drop the tail, is to round up as
often as the tail asks for, subnormal numbers included.

On a CPU this takes a tenth of the time of torch's casts. It gives their numbers, but does not know
NaN and infinity.
"""

import torch
from torch import Tensor

# Places of a float32 that each format drops, and what aligns the exponents: both biases against
# 127.
_E4M3_TAIL, _E4M3_SHIFT = 20, 2.0**-120
_E5M2_TAIL, _E5M2_SHIFT = 21, 2.0**-112

# After so many elements the thresholds repeat. Steps of 1 / golden ratio^5 spread them evenly, and
# their products stay in an int32.
PERIOD = 2**13
_STRIDE = 0.0901699437


def decode_e4m3(codes: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """The values of a float8_e4m3fn tensor, in `out` (float32); `spare`, an int16 tensor of that
    shape, is overwritten.
    """
    if torch.compiler.is_compiling() or not codes.is_cpu:
        return out.copy_(codes)
    # A float16 has one exponent bit more, which a negative code fills on its way to the left, and a
    # bias that is 8 more.
    spare.copy_(codes.view(torch.int8)).mul_(2**7).bitwise_and_(~(1 << 14))
    return out.copy_(spare.view(torch.float16)).mul_(2.0**8)


def decode_e5m2(codes: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """The values of a float8_e5m2 tensor, none negative, likewise."""
    if torch.compiler.is_compiling() or not codes.is_cpu:
        return out.copy_(codes)
    return out.copy_(spare.copy_(codes.view(torch.int8)).mul_(2**8).view(torch.float16))


def encode_e4m3(values: Tensor, thresholds: Tensor, out: Tensor) -> None:
    """Store float32 values (magnitudes up to 448, overwritten) as float8_e4m3fn, rounded up where
    they reach thresholds of dither_e4m3.
    """
    negative = values.signbit()
    kept = (
        values.mul_(_E4M3_SHIFT).view(torch.int32).add_(thresholds).bitwise_right_shift_(_E4M3_TAIL)
    )
    # The sign is 4 places too high, and a byte would cut it off.
    out.view(torch.uint8).copy_(kept.add_(negative, alpha=2**7))


def encode_e5m2(values: Tensor, thresholds: Tensor, out: Tensor) -> None:
    """Store float32 values (0 to 57344, overwritten) as float8_e5m2, rounded up where they reach
    thresholds of dither_e5m2.
    """
    out.view(torch.uint8).copy_(
        values.mul_(_E5M2_SHIFT).view(torch.int32).add_(thresholds).bitwise_right_shift_(_E5M2_TAIL)
    )


def dither_e4m3(count: int, phase: float | Tensor, device: torch.device) -> Tensor:
    """Thresholds for `count` values in encode_e4m3, evenly spread, all of them turned by a phase in
    [0, 1).
    """
    return _dither(count, phase, _E4M3_TAIL, device)


def dither_e5m2(count: int, phase: float | Tensor, device: torch.device) -> Tensor:
    """Thresholds for `count` values in encode_e5m2."""
    return _dither(count, phase, _E5M2_TAIL, device)


def _dither(count: int, phase: float | Tensor, places: int, device: torch.device) -> Tensor:
    turn = phase * 2**places
    turn = (
        turn.to(device, torch.int32, non_blocking=True) if isinstance(turn, Tensor) else int(turn)
    )
    compiling = torch.compiler.is_compiling()
    # A compiler works them out where they are used; else one period is, and then repeated.
    index = torch.arange(
        count if compiling else min(count, PERIOD), dtype=torch.int32, device=device
    )
    index = index & (PERIOD - 1) if compiling else index
    # Odd, so that no two of a period are the same.
    stride = int(_STRIDE * 2**places) | 1
    thresholds = index.mul_(stride).add_(turn).bitwise_and_(2**places - 1)
    return (
        thresholds if len(thresholds) == count else thresholds.repeat(-(-count // PERIOD))[:count]
    )
