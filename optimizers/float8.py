"""float8 tensors by integer arithmetic: decoding, and rounding that is unbiased on average.

A float8 is the head of a wider float: e5m2 of a float16, and both formats of a float32 whose
exponent a multiplication by a power of 2 has shifted. Dropping the tail rounds towards 0. Adding a
threshold below the last kept place before that rounds up as often as the tail requires, for
subnormal numbers too.

On a CPU this takes a tenth of the time of torch's casts. It gives the same numbers, but does not
handle NaN and infinity.
"""

import torch
from torch import Tensor

# The bits of a float32 that each format drops, and the factor that aligns the exponent biases.
E4M3_TAIL, _E4M3_SHIFT = 20, 2.0**-120
E5M2_TAIL, _E5M2_SHIFT = 21, 2.0**-112

# The thresholds repeat after this many elements. Steps of 1 / golden ratio^5 spread them evenly,
# and their products fit an int32.
PERIOD = 2**13
_STRIDE = 0.0901699437


def decode_e4m3(codes: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """Decode a float8_e4m3fn tensor into `out` (float32) and return it.

    `spare`, an int16 tensor of the same shape, is overwritten.
    """
    if torch.compiler.is_compiling() or not codes.is_cpu:
        return out.copy_(codes)
    # A float16 has one more exponent bit, which the shift of a negative code sets, and a bias that
    # is 8 larger.
    spare.copy_(codes.view(torch.int8)).mul_(2**7).bitwise_and_(~(1 << 14))
    return out.copy_(spare.view(torch.float16)).mul_(2.0**8)


def decode_e5m2(codes: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """Decode a float8_e5m2 tensor without negative values, as decode_e4m3 does."""
    if torch.compiler.is_compiling() or not codes.is_cpu:
        return out.copy_(codes)
    return out.copy_(spare.copy_(codes.view(torch.int8)).mul_(2**8).view(torch.float16))


def encode_e4m3(values: Tensor, thresholds: Tensor, out: Tensor) -> None:
    """Store float32 values of magnitudes up to 448 as float8_e4m3fn.

    They are rounded up if their tails reach the thresholds of dither_e4m3, and overwritten.
    """
    negative = values.signbit()
    kept = (
        values.mul_(_E4M3_SHIFT).view(torch.int32).add_(thresholds).bitwise_right_shift_(E4M3_TAIL)
    )
    # The sign bit is 4 places too high for a byte.
    out.view(torch.uint8).copy_(kept.add_(negative, alpha=2**7))


def encode_e5m2(values: Tensor, thresholds: Tensor, out: Tensor) -> None:
    """Store float32 values from 0 to 57344 as float8_e5m2, by thresholds of dither_e5m2.

    The values are overwritten.
    """
    out.view(torch.uint8).copy_(
        values.mul_(_E5M2_SHIFT).view(torch.int32).add_(thresholds).bitwise_right_shift_(E5M2_TAIL)
    )


def dither_e4m3(count: int, phase: float | Tensor, device: torch.device) -> Tensor:
    """Return `count` evenly spread thresholds for encode_e4m3, all shifted by a phase in [0, 1)."""
    return _dither(count, phase, E4M3_TAIL, device)


def dither_e5m2(count: int, phase: float | Tensor, device: torch.device) -> Tensor:
    """Return `count` evenly spread thresholds for encode_e5m2, all shifted by a phase in [0, 1)."""
    return _dither(count, phase, E5M2_TAIL, device)


def stride(places: int) -> int:
    """Return the step from one threshold of that many bits to the next."""
    # Odd, so that no two thresholds of a period are equal.
    return int(_STRIDE * 2**places) | 1


def _dither(count: int, phase: float | Tensor, places: int, device: torch.device) -> Tensor:
    turn = phase * 2**places
    turn = (
        turn.to(device, torch.int32, non_blocking=True) if isinstance(turn, Tensor) else int(turn)
    )
    compiling = torch.compiler.is_compiling()
    # Compiled code computes them at their use; otherwise one period is computed and repeated.
    index = torch.arange(
        count if compiling else min(count, PERIOD), dtype=torch.int32, device=device
    )
    index = index & (PERIOD - 1) if compiling else index
    thresholds = index.mul_(stride(places)).add_(turn).bitwise_and_(2**places - 1)
    return (
        thresholds if len(thresholds) == count else thresholds.repeat(-(-count // PERIOD))[:count]
    )
