"""Torch's process-wide settings: a factory's hold during its training and end with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.backends import cuda

# The functions that read and write each setting.
_SETTINGS: tuple[tuple[Any, Any], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.math_sdp_enabled, cuda.enable_math_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
    # Torch's own testing tools forbid writing these by their public names.
    (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
    (torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark),
)


@dataclass(frozen=True)
class TorchSettings:
    """The values of torch's settings, without the default device."""

    values: tuple[Any, ...]

    @classmethod
    def now(cls) -> "TorchSettings":
        """Return the settings in force."""
        return cls(tuple(read() for read, _ in _SETTINGS))

    def apply(self) -> None:
        """Put these settings in force."""
        for (read, write), value in zip(_SETTINGS, self.values, strict=True):
            # Some settings warn whenever they are written.
            if read() != value:
                write(value)


@contextmanager
def own_settings() -> Iterator[None]:
    """Restore torch's settings after the code inside."""
    before, device = TorchSettings.now(), _default_device()
    try:
        yield
    finally:
        before.apply()
        if _default_device() != device:
            torch.set_default_device(device)


def _default_device() -> torch.device | None:
    """Return the default device, None if none was set."""
    from torch.utils import _device

    return _device.CURRENT_DEVICE
